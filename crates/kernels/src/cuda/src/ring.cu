// A ring of slots in shared memory through which one warp, the producer, streams rows of weights to the others, the consumers.
//
// The bulk copy engine fills slots on its own: the bytes in flight are the ring, about 100 kB a multiprocessor, or the part of it that is tuned
// (state.cu). Places in the stream are counted from 0; both sides know what lies where. A slot is guarded by two barriers: "full"
// flips when its bytes have arrived, "empty" when every warp of the team that it was meant for has read it.

// One slot holds a row of any kind, or a few shorter ones.
constexpr u32 SLOT_OF_PRODUCTS = larger(PACK_BYTES, larger(OUTPUT_PACK * OUTPUT_ROW_BYTES, VALUE_BYTES));
constexpr u32 SLOT_BYTES = ceil_div(larger(larger(SLOT_OF_PRODUCTS, DOWN_BYTES), larger(INNER_PART_BYTES, OUTER_BYTES)), 128) * 128;
constexpr u32 SLOTS_MAX = 48;

struct RingState {
    u64 full[SLOTS_MAX];
    u64 empty[SLOTS_MAX];
    u32 asked;  // places that the producer has asked to be filled
};
