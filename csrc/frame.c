/* csrc/frame.c */
#include "frame.h"

#include <string.h>

static inline uint32_t get32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static inline void put32(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 24), p[1] = (uint8_t)(v >> 16), p[2] = (uint8_t)(v >> 8), p[3] = (uint8_t)v;
}

/* Four bits a step: the table is small enough to be read as source, and this path is for processors without CRC32. */
static const uint32_t NIBBLE[16] = {
    0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
    0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9, 0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75,
};

uint32_t nova_frame_crc32c_plain(uint32_t crc, const uint8_t *bytes, size_t n)
{
    crc = ~crc;
    for (; n; n--) {
        crc ^= *bytes++;
        crc = crc >> 4 ^ NIBBLE[crc & 15];
        crc = crc >> 4 ^ NIBBLE[crc & 15];
    }
    return ~crc;
}

#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("sse4.2"))) static uint32_t crc32c_sse42(uint32_t crc, const uint8_t *bytes, size_t n)
{
    uint64_t state = ~crc, word;
    for (; n >= 8; n -= 8, bytes += 8) {
        memcpy(&word, bytes, 8);
        state = __builtin_ia32_crc32di(state, word);
    }
    uint32_t tail = (uint32_t)state;
    for (; n; n--)
        tail = __builtin_ia32_crc32qi(tail, *bytes++);
    return ~tail;
}

uint32_t nova_frame_crc32c(uint32_t crc, const uint8_t *bytes, size_t n)
{
    static signed char known = -1; /* racing threads write the same answer */
    if (__builtin_expect(known < 0, 0))
        known = (signed char)!!__builtin_cpu_supports("sse4.2");
    return known ? crc32c_sse42(crc, bytes, n) : nova_frame_crc32c_plain(crc, bytes, n);
}
#elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
uint32_t nova_frame_crc32c(uint32_t crc, const uint8_t *bytes, size_t n)
{
    uint64_t word;
    crc = ~crc;
    for (; n >= 8; n -= 8, bytes += 8) {
        memcpy(&word, bytes, 8);
        crc = __crc32cd(crc, word);
    }
    for (; n; n--)
        crc = __crc32cb(crc, *bytes++);
    return ~crc;
}
#else
uint32_t nova_frame_crc32c(uint32_t crc, const uint8_t *bytes, size_t n)
{
    return nova_frame_crc32c_plain(crc, bytes, n);
}
#endif

int nova_frame_read(const uint8_t *bytes, size_t length_max, nova_frame *out)
{
    if (bytes[0] != 'N')
        return NOVA_EMAGIC;
    if (bytes[1] != NOVA_FRAME_VERSION)
        return NOVA_EVERSION;
    uint8_t flags = bytes[3];
    if (flags & ~(NOVA_FLAG_TRACE | NOVA_FLAG_MAC))
        return NOVA_EFLAGS;
    uint32_t length = get32(bytes + 4);
    if (length > length_max)
        return NOVA_ELENGTH;
    size_t extras = (flags & NOVA_FLAG_TRACE ? NOVA_FRAME_TRACE : 0) + (flags & NOVA_FLAG_MAC ? NOVA_FRAME_MAC : 0);
    if (length < extras)
        return NOVA_ESHORT;
    *out = (nova_frame){.type = bytes[2],
                        .flags = flags,
                        .length = length,
                        .sequence = (uint64_t)get32(bytes + 8) << 32 | get32(bytes + 12),
                        .stream = get32(bytes + 16),
                        .crc = get32(bytes + 20)};
    return 0;
}

void nova_frame_write_signed(uint8_t *bytes, const nova_frame *frame)
{
    bytes[0] = 'N', bytes[1] = NOVA_FRAME_VERSION, bytes[2] = frame->type, bytes[3] = frame->flags;
    put32(bytes + 4, frame->length);
    put32(bytes + 8, (uint32_t)(frame->sequence >> 32));
    put32(bytes + 12, (uint32_t)frame->sequence);
    put32(bytes + 16, frame->stream);
}

void nova_frame_write(uint8_t *bytes, const nova_frame *frame)
{
    nova_frame_write_signed(bytes, frame);
    uint32_t crc = nova_frame_crc32c(0, bytes, NOVA_FRAME_SIGNED);
    put32(bytes + 20, nova_frame_crc32c(crc, bytes + NOVA_FRAME_HEADER, frame->length));
}

int nova_frame_checks(const uint8_t *header, const uint8_t *body, size_t n)
{
    return nova_frame_crc32c(nova_frame_crc32c(0, header, NOVA_FRAME_SIGNED), body, n) == get32(header + 20);
}
