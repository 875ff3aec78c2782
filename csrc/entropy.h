/* csrc/entropy.h - zstd by the library that the system has, whose functions are found at run time.
 *
 * libzstd is on every Debian (dpkg needs it), its interface has been stable since 1.4, and calling it so costs no package at
 * build time and nothing in a wheel. Without it nothing here works and nova_zstd_version() is 0. Who loads it tells here
 * where its functions are: dlopen itself moved to another library in glibc 2.34, and a wheel shall not ask for that one.
 * Contexts are its, and belong to one thread at a time. */
#pragma once
#include <stddef.h>

enum { NOVA_ZSTD_FUNCTIONS = 14 };
extern const char *const nova_zstd_names[NOVA_ZSTD_FUNCTIONS];

/* Where the functions of these names are; before anything else here is called, and once. */
void nova_zstd_bind(void *const functions[NOVA_ZSTD_FUNCTIONS]);

/* As 10506 for 1.5.6; 0: it is not here. */
unsigned nova_zstd_version(void);

typedef struct nova_zstd_cctx nova_zstd_cctx;
typedef struct nova_zstd_dctx nova_zstd_dctx;

/* NULL: no library, or no memory. */
nova_zstd_cctx *nova_zstd_compressor(void);
nova_zstd_dctx *nova_zstd_decompressor(void);
void nova_zstd_compressor_free(nova_zstd_cctx *c);
void nova_zstd_decompressor_free(nova_zstd_dctx *d);

/* Bytes written to out, or 0 if they would be more than `room`. With a prefix, matches may be in it, too. */
size_t nova_zstd_compress(nova_zstd_cctx *c, int level, const void *prefix, size_t prefix_bytes, const void *bytes,
                          size_t n, void *out, size_t room);
/* 1 if `bytes` give exactly n bytes, 0 if not. */
int nova_zstd_decompress(nova_zstd_dctx *d, const void *prefix, size_t prefix_bytes, const void *bytes, size_t stored,
                         void *out, size_t n);
