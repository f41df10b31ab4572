//! Products through cuBLAS.

use super::{Cuda, CudaError};
use cudarc::cublas::{
    CudaBlas, result,
    sys::{
        cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cudaDataType, is_culib_present,
    },
};
use std::ffi::c_void;

/// cuBLAS on a card's stream.
pub(super) struct Blas(CudaBlas);

/// A row-major operand.
#[derive(Clone, Copy)]
pub(super) struct Operand {
    /// Its address on the card.
    pub(super) at: u64,
    /// Whether it is multiplied as it lies.
    pub(super) lies: Lies,
}

/// How an operand lies.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lies {
    /// As it is multiplied.
    Straight,
    /// As its transpose.
    Transposed,
}

impl Blas {
    /// cuBLAS for a card.
    ///
    /// # Errors
    /// [`CudaError::NoBlas`], or what cuBLAS says.
    pub(super) fn new(cuda: &Cuda) -> Result<Blas, CudaError> {
        // SAFETY: loading the library runs nothing but its own initialisation.
        if !unsafe { is_culib_present() } {
            return Err(CudaError::NoBlas);
        }
        let blas = CudaBlas::new(cuda.stream.clone());
        blas.map(Blas).map_err(|source| CudaError::Blas { source })
    }

    /// `out = x w`, added up in `f32`: `x` `[n, k]` and `w` `[k, m]` of one type, `out` `[n, m]` of `f32`, at an address.
    ///
    /// # Safety
    /// All three are on the card and as long as their shapes say.
    pub(super) unsafe fn multiply(
        &self,
        (x, w, kind): (Operand, Operand, cudaDataType),
        [n, k, m]: [usize; 3],
        out: u64,
    ) -> Result<(), CudaError> {
        // cuBLAS counts columns first, so it sees all matrices transposed: out^T = w^T x^T.
        let operation = |o: Operand| match o.lies {
            Lies::Straight => cublasOperation_t::CUBLAS_OP_N,
            Lies::Transposed => cublasOperation_t::CUBLAS_OP_T,
        };
        let stride = |o: Operand, straight: usize, transposed: usize| match o.lies {
            Lies::Straight => straight as i32,
            Lies::Transposed => transposed as i32,
        };
        let (one, zero) = (1f32, 0f32);
        // SAFETY: the caller's promise; factors are of the type of the computation.
        let done = unsafe {
            result::gemm_ex(
                *self.0.handle(),
                operation(w),
                operation(x),
                m as i32,
                n as i32,
                k as i32,
                std::ptr::from_ref(&one).cast(),
                w.at as *const c_void,
                kind,
                stride(w, m, k),
                x.at as *const c_void,
                kind,
                stride(x, k, n),
                std::ptr::from_ref(&zero).cast(),
                out as *mut c_void,
                cudaDataType::CUDA_R_32F,
                m as i32,
                cublasComputeType_t::CUBLAS_COMPUTE_32F,
                cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        done.map_err(|source| CudaError::Blas { source })
    }
}
