// The instruction sets of this build, and which of them the processor supports.
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels.hpp"

namespace portable {
extern const vgg::Kernels table;
}
#if defined(VGG_X86)
namespace avx2 {
extern const vgg::Kernels table;
}
namespace avx512 {
extern const vgg::Kernels table;
}
#endif

namespace vgg {
namespace {

// Every instruction set that CMakeLists.txt lets the compiler use. The operating system must have enabled it too.
#if defined(VGG_X86)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

struct Choice {
    const Kernels &kernels;
    bool (*available)();
};

const Choice CHOICES[] = {
// the best first
#if defined(VGG_X86)
    {avx512::table, has_avx512},
    {avx2::table, has_avx2},
#endif
    {portable::table, [] { return true; }},
};

}  // namespace

const Kernels &kernels(const char *name) {
    std::string names;
    for (const Choice &choice : CHOICES) {
        const bool named = std::strcmp(name, choice.kernels.name) == 0;
        if (named && !choice.available()) throw std::invalid_argument(std::string("this processor does not support ") + name);
        if (named || (std::strcmp(name, "auto") == 0 && choice.available())) return choice.kernels;
        names += std::string(", ") + choice.kernels.name;
    }
    throw std::invalid_argument("unknown instruction set '" + std::string(name) + "'; this build has auto" + names);
}

}  // namespace vgg
