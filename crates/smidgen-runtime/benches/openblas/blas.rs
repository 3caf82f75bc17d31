//! OpenBLAS, loaded at run time: nothing is linked against it.

use std::ffi::{CStr, c_char, c_float, c_int};

use libloading::Library;
use smidgen_kernels::{MatMut, MatRef};

type Sgemm = unsafe extern "C" fn(
    order: c_int,
    turn_a: c_int,
    turn_b: c_int,
    m: c_int,
    n: c_int,
    k: c_int,
    alpha: c_float,
    a: *const c_float,
    lda: c_int,
    b: *const c_float,
    ldb: c_int,
    beta: c_float,
    c: *mut c_float,
    ldc: c_int,
);

const ROW_MAJOR: c_int = 101;
const NO_TRANS: c_int = 111;
const TRANS: c_int = 112;

/// The functions used here.
pub struct OpenBlas {
    sgemm: Sgemm,
    set_num_threads: unsafe extern "C" fn(c_int),
    /// Version, build and the processor that its kernels are for.
    pub config: String,
    /// Keeps the functions mapped.
    _library: Library,
}

impl OpenBlas {
    pub fn load(file: &str) -> Result<Self, libloading::Error> {
        type Text = unsafe extern "C" fn() -> *const c_char;
        // SAFETY: the library is OpenBLAS, whose initialisers ask nothing of the caller; the
        // symbols have these signatures in its cblas.h (32-bit integers: not the "64_" builds).
        unsafe {
            let library = Library::new(file)?;
            let sgemm = *library.get::<Sgemm>(b"cblas_sgemm\0")?;
            let set_num_threads = *library.get(b"openblas_set_num_threads\0")?;
            let config = *library.get::<Text>(b"openblas_get_config\0")?;
            let config = CStr::from_ptr(config()).to_string_lossy().into_owned();
            Ok(Self { sgemm, set_num_threads, config, _library: library })
        }
    }

    pub fn set_threads(&self, threads: usize) {
        // SAFETY: takes any positive number.
        unsafe { (self.set_num_threads)(int(threads)) }
    }

    /// `c` (m x n) = `a` (m x k) times the operand that `b` is: its transpose, or itself.
    pub fn sgemm(&self, a: MatRef<'_>, b: MatRef<'_>, transposed: bool, c: &mut MatMut<'_>) {
        let (m, n, k) = (c.rows(), c.cols(), a.cols());
        let expected = if transposed { (n, k) } else { (k, n) };
        assert_eq!((a.rows(), (b.rows(), b.cols())), (m, expected), "shapes");
        let turn_b = if transposed { TRANS } else { NO_TRANS };
        let strides = (int(a.stride()), int(b.stride()), int(c.stride()));
        let (lda, ldb, ldc) = strides;
        let (m, n, k) = (int(m), int(n), int(k));
        // SAFETY: the matrices have the shapes and strides given, as checked above, and `c` is
        // borrowed alone.
        unsafe {
            let (a, b, c) = (a.as_ptr(), b.as_ptr(), c.as_mut_ptr());
            (self.sgemm)(ROW_MAJOR, NO_TRANS, turn_b, m, n, k, 1.0, a, lda, b, ldb, 0.0, c, ldc);
        }
    }
}

fn int(n: usize) -> c_int {
    c_int::try_from(n).expect("fits OpenBLAS's integers")
}
