// Which instruction sets this build has, and which of them this processor runs.
#include <cstring>

#include "kernels.hpp"

namespace portable { extern const vgg::Kernels table; }
#if defined(VGG_X86)
namespace avx2 { extern const vgg::Kernels table; }
namespace avx512 { extern const vgg::Kernels table; }
#endif

namespace vgg {
namespace {

// Of all that CMakeLists.txt lets the compiler use; the system must have turned it on, too.
#if defined(VGG_X86)
bool runs_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool runs_avx512() {
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif
bool runs_portable() { return true; }

struct Choice {
    const Kernels &kernels;
    bool (*runs)();
};

const Choice CHOICES[] = {  // the best first
#if defined(VGG_X86)
    {avx512::table, runs_avx512},
    {avx2::table, runs_avx2},
#endif
    {portable::table, runs_portable},
};

}  // namespace

const Kernels *kernels(const char *name) {
    for (const Choice &choice : CHOICES)
        if ((std::strcmp(name, "auto") == 0 || std::strcmp(name, choice.kernels.name) == 0) && choice.runs())
            return &choice.kernels;
    return nullptr;
}

}  // namespace vgg
