#pragma once

namespace graft {

/// Makes OpenBLAS compute on the calling thread alone, for the whole process. Callers split work themselves, in blocks
/// that do not depend on the number of threads.
void use_one_blas_thread();

}  // namespace graft
