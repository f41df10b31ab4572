// Matrices that are multiplied with the same vector in one launch, their rows counted one matrix after the other.

struct Product {
    const u8* weights;  // [rows, width of the vector], one row behind the other
    const float* bias;  // [rows], or null
    float* out;         // [rows]
    u32 rows;
    u32 adds;           // 1: to what is there
};

// Those that are missing have no rows.
constexpr u32 PRODUCTS = 3;

// The matrix that a row belongs to; `row` becomes which of its rows it is.
__device__ const Product& product_of(const Product (&products)[PRODUCTS], u32& row) {
    u32 p = 0;
    while (p + 1 < PRODUCTS && row >= products[p].rows) row -= products[p++].rows;
    return products[p];
}
