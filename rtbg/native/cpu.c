/* Which of the sets of instructions that `edge.c` and `grid.c` were built for this processor and its system have: 0, the plain one;
   1, x86-64-v3 (AVX2). AVX-512 gains nothing more here. */

#include <stdint.h>

#if defined(_WIN32)
#define PUBLIC __attribute__((dllexport))
int DllMainCRTStartup(void *module, uint32_t reason, void *reserved);
int DllMainCRTStartup(void *module, uint32_t reason, void *reserved) { /* Windows calls it on loading */
    (void)module, (void)reason, (void)reserved;
    return 1;
}
#else
#define PUBLIC __attribute__((visibility("default")))
#endif

PUBLIC int rtbg_isa(void) {
#if defined(__x86_64__)
    uint32_t a, b, c, d;
#define CPUID(leaf, sub) __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(leaf), "c"(sub))
    CPUID(0, 0);
    if (a < 7)
        return 0;
    CPUID(1, 0);
    const uint32_t first = 1u << 12 | 1u << 22 | 1u << 23 | 1u << 27 | 1u << 28 | 1u << 29; /* FMA to F16C */
    if ((c & first) != first)
        return 0;
    uint32_t low, high; /* what the system keeps of a thread: 6, AVX's registers */
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 6) != 6)
        return 0;
    CPUID(7, 0);
    const uint32_t avx2 = 1u << 3 | 1u << 5 | 1u << 8;
    uint32_t found = b;
    CPUID(0x80000001u, 0);
    return (found & avx2) == avx2 && (c & 1u << 5) != 0; /* LZCNT */
#else
    return 0;
#endif
}
