// Which instruction sets this build has, and which of them this processor runs.
#include <cstring>

#include "kernels.hpp"

namespace portable { extern const vgg::Kernels table; }
#if defined(VGG_X86)
namespace avx2 { extern const vgg::Kernels table; }
namespace avx512 { extern const vgg::Kernels table; }
#endif

namespace vgg {

const Kernels *kernels(const char *name) {
    const bool best = std::strcmp(name, "auto") == 0;
#if defined(VGG_X86)
    // AVX-512 has been compiled but not yet run by its authors, so it must be asked for by name.
    if (std::strcmp(name, "avx512") == 0 && __builtin_cpu_supports("avx512f")) return &avx512::table;
    if ((best || std::strcmp(name, "avx2") == 0) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return &avx2::table;
#endif
    return best || std::strcmp(name, "portable") == 0 ? &portable::table : nullptr;
}

}  // namespace vgg
