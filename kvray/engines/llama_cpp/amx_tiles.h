/* Compile llama.cpp with `-include` of this file where GCC is older than 12.4 or 13.3: it tells its optimiser of 8 of the
   64 bytes that _tile_loadconfig reads (GCC bug 114098). The others are then removed, and on a CPU with AMX the first
   product ends the process by SIGSEGV. Other compilers see nothing here. */
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#if __GNUC__ < 12 || (__GNUC__ == 12 && __GNUC_MINOR__ < 4) || (__GNUC__ == 13 && __GNUC_MINOR__ < 3)
#include <immintrin.h>
#undef _tile_loadconfig
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg %0" ::"m"(*(const char(*)[64])(config)))
#endif
#endif
