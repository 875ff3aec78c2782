/* csrc/frame.h - the frame on the wire: a fixed header with CRC32C, bounds checked before anything is believed.
 *
 *      0  'N'              8  sequence, u64          all numbers big-endian
 *      1  format version  16  stream, u32
 *      2  type            20  CRC32C, u32, of bytes 0..19 and of everything behind the header
 *      3  flags           24  body: [trace context, 24 bytes] payload [MAC, 16 bytes], as the flags say
 *      4  length of body, u32
 *
 * Arguments are borrowed. Nothing here allocates. */
#pragma once
#include <stddef.h>
#include <stdint.h>

enum {
    NOVA_FRAME_HEADER = 24,
    NOVA_FRAME_SIGNED = 20,
    NOVA_FRAME_TRACE = 24,
    NOVA_FRAME_MAC = 16,
    NOVA_FRAME_VERSION = 1
};
enum { NOVA_FLAG_TRACE = 1, NOVA_FLAG_MAC = 2 };
enum { NOVA_EMAGIC = -1, NOVA_EVERSION = -2, NOVA_EFLAGS = -3, NOVA_ELENGTH = -4, NOVA_ESHORT = -5 };

typedef struct {
    uint8_t type, flags;
    uint32_t length, stream, crc;
    uint64_t sequence;
} nova_frame;

/* Continue a CRC32C (Castagnoli); start with 0. Takes the best way that the processor has. */
uint32_t nova_frame_crc32c(uint32_t crc, const uint8_t *bytes, size_t n);

/* The ways there are, slow to fast: a table; the instruction, 8 bytes a step; carry-less multiplication, four times 128
 * bits a step; the same on four vectors of 512 bits. */
enum { NOVA_CRC_PLAIN, NOVA_CRC_INSTRUCTION, NOVA_CRC_FOLD, NOVA_CRC_WIDE };

/* The best way of this processor, within what NOVA_SIMD allows. */
int nova_frame_crc32c_level(void);

/* The same checksum by a way no better than `level`. */
uint32_t nova_frame_crc32c_at(int level, uint32_t crc, const uint8_t *bytes, size_t n);

/* The same without the instruction: the fall-back, and the model that the fast one is tested against. */
uint32_t nova_frame_crc32c_plain(uint32_t crc, const uint8_t *bytes, size_t n);

/* Read the header in bytes[0..23]. 0, or NOVA_E... and *out untouched: no length over length_max is ever handed out,
 * nor one that is too short for what the flags announce (NOVA_ESHORT). */
int nova_frame_read(const uint8_t *bytes, size_t length_max, nova_frame *out);

/* Write header and checksum in front of the frame->length bytes of body that already stand at bytes + 24. */
void nova_frame_write(uint8_t *bytes, const nova_frame *frame);

/* Write the first 20 header bytes only: what a MAC covers together with the body in front of it. */
void nova_frame_write_signed(uint8_t *bytes, const nova_frame *frame);

/* Does the checksum in `header` fit its first 20 bytes and the body? */
int nova_frame_checks(const uint8_t *header, const uint8_t *body, size_t n);
