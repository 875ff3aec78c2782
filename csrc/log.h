/* csrc/log.h - the bytes of write-ahead segments: records under CRC32C, bound to their place.
 *
 * A segment is a header of NOVA_LOG_HEADER bytes and then records, back to back; what follows is zeros.
 *
 *   header  "NOVALOG\n" | version u32 | 0 u32 | id u64 | first position u64 | 0 ... | crc u32 (last four bytes)
 *   record  crc u32 | index u32 | length u32 | type u8 | payload           all little-endian
 *
 * index counts the records of the segment from 0. The checksum starts from the segment's seed, which is made of its
 * random id and its first position, so bytes of another segment, or of another place in this one, never pass.
 * A mark is a record that takes no index; the writer leaves one when it closes. NOVA_LOG_FIRST is set on the first
 * record of every group commit: whoever reads it knows that all before it had reached the disk.
 *
 * Arguments are borrowed, nothing is allocated. Sizes are checked here: bytes from disk are hostile. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#define NOVA_LOG_HEADER 64
#define NOVA_LOG_RECORD 13
#define NOVA_LOG_VERSION 1u
#define NOVA_LOG_PAYLOAD_MAX (64u << 20)

enum { NOVA_LOG_DATA = 1, NOVA_LOG_MARK = 2, NOVA_LOG_FIRST = 0x80 };

/* What stands at an offset. */
enum {
    NOVA_LOG_WHOLE = 0, /* a valid record */
    NOVA_LOG_SHORT = 1, /* the bytes end before the record does */
    NOVA_LOG_BAD = 2,   /* not a record of this place */
};

enum { NOVA_LOG_E_MAGIC = -1, NOVA_LOG_E_VERSION = -2, NOVA_LOG_E_CRC = -3, NOVA_LOG_E_SHORT = -4 };

typedef struct {
    const uint8_t *payload;
    uint32_t length, index;
    uint8_t type;
} nova_log_record;

/* CRC32C (Castagnoli), continuing from crc; the instruction where the processor has it, else eight tables. */
uint32_t nova_crc32c(uint32_t crc, const void *bytes, size_t size);
uint32_t nova_crc32c_software(uint32_t crc, const void *bytes, size_t size);
/* 1 if nova_crc32c uses the processor's instruction. */
int nova_crc32c_is_hardware(void);

uint32_t nova_log_seed(uint64_t id, uint64_t first);
void nova_log_header_write(uint8_t out[NOVA_LOG_HEADER], uint64_t id, uint64_t first);
/* 0, or NOVA_LOG_E...; *version is set whenever the magic is right. */
int nova_log_header_read(const uint8_t *bytes, size_t size, uint32_t *version, uint64_t *id, uint64_t *first);

/* Write a record without its checksum; out has room for NOVA_LOG_RECORD + length. Returns the bytes written. */
size_t nova_log_put(uint8_t *out, uint32_t index, uint8_t type, const void *payload, uint32_t length);
/* Fill in the checksums of the records that fill bytes[0, size) as nova_log_put wrote them. */
void nova_log_seal(uint8_t *bytes, size_t size, uint32_t seed);

/* The record at bytes[at], which must have this index; NOVA_LOG_WHOLE fills *out. */
int nova_log_read(const uint8_t *bytes, size_t size, size_t at, uint32_t seed, uint32_t index, nova_log_record *out);

/* The first whole record at or after `at` whose index is `index` or more, and the first such that also opens a group
 * commit; each is SIZE_MAX if there is none. Returns 0, or -1 when the bytes are so crafted that the search would take
 * quadratic time and was given up. */
int nova_log_find(const uint8_t *bytes, size_t size, size_t at, uint32_t seed, uint32_t index, size_t *any,
                  size_t *opening);

/* 1 if bytes[from, to) holds the rest of a 512-byte sector that is all zeros: a write that never reached the disk.
 * base is the offset of bytes[0] in its file. */
int nova_log_sector_lost(const uint8_t *bytes, size_t from, size_t to, uint64_t base);

/* The number of bytes up to and with the last that is not zero. */
size_t nova_log_extent(const uint8_t *bytes, size_t size);
