// The instruction sets of this build, and which of them the processor supports.
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(VGG_X86)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#if defined(VGG_ARM)
#include <sys/auxv.h>
#endif
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include "kernels.hpp"

#define VGG_TABLE(instructions)      \
    namespace instructions {         \
    extern const vgg::Kernels table; \
    }
VGG_TABLE(portable)
#if defined(VGG_X86)
VGG_TABLE(avx2)
VGG_TABLE(avx2vnni)
VGG_TABLE(avx512)
VGG_TABLE(avx512vnni)
VGG_TABLE(avx512bf16)
VGG_TABLE(amx)
#endif
#if defined(VGG_ARM)
VGG_TABLE(neonbf16)
#endif

namespace vgg {
namespace {

// Every instruction set that CMakeLists.txt lets the compiler use. The operating system must have enabled its registers too.
// With cpuid itself, since __builtin_cpu_supports needs a library that CMake doesn't link on Windows. Bits as in Intel's
// manual.
#if defined(VGG_X86)
constexpr unsigned YMM = 0x6, ZMM = 0xe6;  // with the registers that they extend
constexpr unsigned AVX2 = 1u << 5, AVX512F = 1u << 16, AVX512DQ = 1u << 17, AVX512BW = 1u << 30, AVX512VL = 1u << 31;
constexpr unsigned AVX512_VNNI = 1u << 11;                     // in ecx
constexpr unsigned AVX_VNNI = 1u << 4, AVX512_BF16 = 1u << 5;  // in eax of the second leaf

bool supports(unsigned registers, unsigned extended, unsigned vnni = 0, unsigned second = 0) {
    constexpr unsigned FMA = 1u << 12, OSXSAVE = 1u << 27;
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & (FMA | OSXSAVE)) != (FMA | OSXSAVE)) return false;
    __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    if ((a & registers) != registers) return false;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (b & extended) != extended || (c & vnni) != vnni) return false;
    return second == 0 || (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & second) == second);
}

constexpr unsigned AVX512 = AVX2 | AVX512F | AVX512DQ | AVX512BW | AVX512VL;
bool has_avx2() { return supports(YMM, AVX2); }
bool has_avx2vnni() { return supports(YMM, AVX2, 0, AVX_VNNI); }
bool has_avx512() { return supports(ZMM, AVX512); }
bool has_avx512vnni() { return supports(ZMM, AVX512, AVX512_VNNI); }
bool has_avx512bf16() { return supports(ZMM, AVX512, AVX512_VNNI, AVX512_BF16); }

// The process must ask the system for the registers first.
bool has_amx() {
#if defined(VGG_EMULATED_TILES)
    return has_avx512bf16();
#elif defined(__linux__)
    constexpr unsigned TILES = 0x60000, AMX = 1u << 22 | 1u << 24 | 1u << 25;  // AMX-BF16, AMX-TILE and AMX-INT8 in edx
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;                // of arch_prctl
    unsigned a = 0, b = 0, c = 0, d = 0;
    return supports(ZMM | TILES, AVX512, AVX512_VNNI, AVX512_BF16) && __get_cpuid_count(7, 0, &a, &b, &c, &d) &&
           (d & AMX) == AMX && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    return false;
#endif
}
#endif

#if defined(VGG_ARM)
// BF16, and I8MM for integers.
bool has_neonbf16() {
#if defined(__linux__)
    constexpr unsigned long I8MM = 1ul << 13, BF16 = 1ul << 14;  // HWCAP2_I8MM, HWCAP2_BF16
    return (getauxval(AT_HWCAP2) & (I8MM | BF16)) == (I8MM | BF16);
#elif defined(__APPLE__)
    const auto has = [](const char *name) {
        int found = 0;
        std::size_t size = sizeof found;
        return sysctlbyname(name, &found, &size, nullptr, 0) == 0 && found;
    };
    return has("hw.optional.arm.FEAT_I8MM") && has("hw.optional.arm.FEAT_BF16");
#else
    return false;
#endif
}
#endif

struct Choice {
    const Kernels &kernels;
    bool (*available)();
    bool automatic = true;  // may be chosen for `auto`
};

const Choice CHOICES[] = {
// the best first
#if defined(VGG_X86)
    {avx512bf16::table, has_avx512bf16},
    {avx512vnni::table, has_avx512vnni},
    {avx512::table, has_avx512},
    {avx2vnni::table, has_avx2vnni, false},  // these two have not run on any processor yet
    {amx::table, has_amx, false},
    {avx2::table, has_avx2},
#endif
#if defined(VGG_ARM)
    {neonbf16::table, has_neonbf16},
#endif
    {portable::table, [] { return true; }},
};

}  // namespace

const Kernels &kernels(const char *name) {
    std::string names;
    for (const Choice &choice : CHOICES) {
        const bool named = std::strcmp(name, choice.kernels.name) == 0;
        if (named && !choice.available()) throw std::invalid_argument(std::string("this processor does not support ") + name);
        if (named || (std::strcmp(name, "auto") == 0 && choice.automatic && choice.available())) return choice.kernels;
        names += std::string(", ") + choice.kernels.name;
    }
    throw std::invalid_argument("unknown instruction set '" + std::string(name) + "'; this build has auto" + names);
}

}  // namespace vgg
