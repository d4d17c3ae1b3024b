// The instruction sets of this build, and which of them the processor supports.
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(VGG_X86)
#include <cpuid.h>
#endif

#include "kernels.hpp"

namespace portable {
extern const vgg::Kernels table;
extern const vgg::Convolution bfloat16;
}  // namespace portable
#if defined(VGG_X86)
namespace avx2 {
extern const vgg::Kernels table;
extern const vgg::Convolution bfloat16;
}  // namespace avx2
namespace avx512 {
extern const vgg::Kernels table;
extern const vgg::Convolution bfloat16;
}  // namespace avx512
namespace avx512_bf16 {
extern const vgg::Convolution bfloat16;
}
#endif

namespace vgg {
namespace {

// Every instruction set that CMakeLists.txt lets the compiler use. The operating system must have enabled its registers too.
// With cpuid itself, since __builtin_cpu_supports needs a library that CMake doesn't link on Windows. Bits as in Intel's
// manual.
#if defined(VGG_X86)
bool supports(unsigned registers, unsigned extended) {
    constexpr unsigned FMA = 1u << 12, OSXSAVE = 1u << 27;
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & (FMA | OSXSAVE)) != (FMA | OSXSAVE)) return false;
    __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    if ((a & registers) != registers) return false;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & extended) == extended;
}

constexpr unsigned YMM = 0x6, ZMM = 0xe6;  // with the registers that they extend
constexpr unsigned AVX2 = 1u << 5, AVX512F = 1u << 16, AVX512DQ = 1u << 17, AVX512BW = 1u << 30, AVX512VL = 1u << 31;

bool has_avx2() { return supports(YMM, AVX2); }
bool has_avx512() { return supports(ZMM, AVX2 | AVX512F | AVX512DQ | AVX512BW | AVX512VL); }
bool has_avx512_bf16() {
    constexpr unsigned BF16 = 1u << 5;
    unsigned a = 0, b = 0, c = 0, d = 0;
    return has_avx512() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & BF16);
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

const Convolution &bfloat16(const Kernels &kernels) {
#if defined(VGG_X86)
    if (&kernels == &avx512::table) return has_avx512_bf16() ? avx512_bf16::bfloat16 : avx512::bfloat16;
    if (&kernels == &avx2::table) return avx2::bfloat16;
#else
    (void)kernels;
#endif
    return portable::bfloat16;
}

}  // namespace vgg
