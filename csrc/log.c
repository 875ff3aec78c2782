/* csrc/log.c */
#include "log.h"

#include <string.h>

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

static const uint8_t MAGIC[8] = {'N', 'O', 'V', 'A', 'L', 'O', 'G', '\n'};

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint64_t get64(const uint8_t *p)
{
    return (uint64_t)get32(p) | (uint64_t)get32(p + 4) << 32;
}

static void put32(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)v, p[1] = (uint8_t)(v >> 8), p[2] = (uint8_t)(v >> 16), p[3] = (uint8_t)(v >> 24);
}

static void put64(uint8_t *p, uint64_t v)
{
    put32(p, (uint32_t)v);
    put32(p + 4, (uint32_t)(v >> 32));
}

/* ---- CRC32C ---- */

static uint32_t TABLE[8][256];
static int HARDWARE;

/* Runs when the library is loaded, before any thread can look. */
__attribute__((constructor)) static void prepare(void)
{
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t c = n;
        for (int k = 0; k < 8; k++)
            c = c & 1 ? c >> 1 ^ 0x82f63b78u : c >> 1;
        TABLE[0][n] = c;
    }
    for (uint32_t n = 0; n < 256; n++)
        for (int k = 1; k < 8; k++)
            TABLE[k][n] = TABLE[k - 1][n] >> 8 ^ TABLE[0][TABLE[k - 1][n] & 0xff];
#if defined(__x86_64__)
    __builtin_cpu_init();
    HARDWARE = __builtin_cpu_supports("sse4.2") != 0;
#elif defined(__aarch64__) && defined(__linux__)
    HARDWARE = (getauxval(AT_HWCAP) & (1ul << 7)) != 0; /* HWCAP_CRC32 */
#endif
}

uint32_t nova_crc32c_software(uint32_t crc, const void *bytes, size_t size)
{
    const uint8_t *p = bytes;
    uint32_t c = ~crc;
    for (; size >= 8; size -= 8, p += 8) {
        uint32_t low = c ^ get32(p), high = get32(p + 4);
        c = TABLE[7][low & 0xff] ^ TABLE[6][low >> 8 & 0xff] ^ TABLE[5][low >> 16 & 0xff] ^ TABLE[4][low >> 24] ^
            TABLE[3][high & 0xff] ^ TABLE[2][high >> 8 & 0xff] ^ TABLE[1][high >> 16 & 0xff] ^ TABLE[0][high >> 24];
    }
    while (size--)
        c = c >> 8 ^ TABLE[0][(c ^ *p++) & 0xff];
    return ~c;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t crc32c_hardware(uint32_t crc, const void *bytes, size_t size)
{
    const uint8_t *p = bytes;
    uint64_t c = ~crc, word;
    for (; size >= 8; size -= 8, p += 8) {
        memcpy(&word, p, 8);
        c = _mm_crc32_u64(c, word);
    }
    while (size--)
        c = _mm_crc32_u8((uint32_t)c, *p++);
    return ~(uint32_t)c;
}
#elif defined(__aarch64__) && defined(__linux__)
__attribute__((target("+crc"))) static uint32_t crc32c_hardware(uint32_t crc, const void *bytes, size_t size)
{
    const uint8_t *p = bytes;
    uint32_t c = ~crc;
    uint64_t word;
    for (; size >= 8; size -= 8, p += 8) {
        memcpy(&word, p, 8);
        c = __builtin_aarch64_crc32cx(c, word);
    }
    while (size--)
        c = __builtin_aarch64_crc32cb(c, *p++);
    return ~c;
}
#else
static uint32_t crc32c_hardware(uint32_t crc, const void *bytes, size_t size)
{
    return nova_crc32c_software(crc, bytes, size);
}
#endif

uint32_t nova_crc32c(uint32_t crc, const void *bytes, size_t size)
{
    return HARDWARE ? crc32c_hardware(crc, bytes, size) : nova_crc32c_software(crc, bytes, size);
}

int nova_crc32c_is_hardware(void)
{
    return HARDWARE;
}

/* ---- segments ---- */

uint32_t nova_log_seed(uint64_t id, uint64_t first)
{
    uint8_t bytes[16];
    put64(bytes, id);
    put64(bytes + 8, first);
    return nova_crc32c(0, bytes, sizeof bytes);
}

void nova_log_header_write(uint8_t out[NOVA_LOG_HEADER], uint64_t id, uint64_t first)
{
    memset(out, 0, NOVA_LOG_HEADER);
    memcpy(out, MAGIC, sizeof MAGIC);
    put32(out + 8, NOVA_LOG_VERSION);
    put64(out + 16, id);
    put64(out + 24, first);
    put32(out + NOVA_LOG_HEADER - 4, nova_crc32c(0, out, NOVA_LOG_HEADER - 4));
}

int nova_log_header_read(const uint8_t *bytes, size_t size, uint32_t *version, uint64_t *id, uint64_t *first)
{
    if (size < NOVA_LOG_HEADER)
        return NOVA_LOG_E_SHORT;
    if (memcmp(bytes, MAGIC, sizeof MAGIC) != 0)
        return NOVA_LOG_E_MAGIC;
    *version = get32(bytes + 8);
    if (get32(bytes + NOVA_LOG_HEADER - 4) != nova_crc32c(0, bytes, NOVA_LOG_HEADER - 4))
        return NOVA_LOG_E_CRC;
    if (*version != NOVA_LOG_VERSION)
        return NOVA_LOG_E_VERSION;
    *id = get64(bytes + 16);
    *first = get64(bytes + 24);
    return 0;
}

/* ---- records ---- */

size_t nova_log_put(uint8_t *out, uint32_t index, uint8_t type, const void *payload, uint32_t length)
{
    put32(out, 0);
    put32(out + 4, index);
    put32(out + 8, length);
    out[12] = type;
    if (length)
        memcpy(out + NOVA_LOG_RECORD, payload, length);
    return NOVA_LOG_RECORD + (size_t)length;
}

void nova_log_seal(uint8_t *bytes, size_t size, uint32_t seed)
{
    for (size_t at = 0; at < size;) {
        size_t whole = NOVA_LOG_RECORD + (size_t)get32(bytes + at + 8);
        put32(bytes + at, nova_crc32c(seed, bytes + at + 4, whole - 4));
        at += whole;
    }
}

static int plausible(const uint8_t *p)
{
    uint8_t type = p[12] & 0x7f;
    uint32_t length = get32(p + 8);
    return type == NOVA_LOG_DATA ? length <= NOVA_LOG_PAYLOAD_MAX : type == NOVA_LOG_MARK && length == 0;
}

int nova_log_read(const uint8_t *bytes, size_t size, size_t at, uint32_t seed, uint32_t index, nova_log_record *out)
{
    if (at > size || size - at < NOVA_LOG_RECORD)
        return NOVA_LOG_SHORT;
    const uint8_t *p = bytes + at;
    if (!plausible(p) || get32(p + 4) != index)
        return NOVA_LOG_BAD;
    uint32_t length = get32(p + 8);
    if (size - at - NOVA_LOG_RECORD < length)
        return NOVA_LOG_SHORT;
    if (get32(p) != nova_crc32c(seed, p + 4, NOVA_LOG_RECORD - 4 + (size_t)length))
        return NOVA_LOG_BAD;
    out->payload = p + NOVA_LOG_RECORD;
    out->length = length;
    out->index = index;
    out->type = p[12];
    return NOVA_LOG_WHOLE;
}

int nova_log_find(const uint8_t *bytes, size_t size, size_t at, uint32_t seed, uint32_t index, size_t *any,
                  size_t *opening)
{
    nova_log_record record;
    uint64_t budget = 64 * (uint64_t)size + 4096; /* bytes that checksums may read before we call it an attack */
    *any = *opening = SIZE_MAX;
    while (at <= size && size - at >= NOVA_LOG_RECORD) {
        const uint8_t *p = bytes + at;
        if (p[12] == 0) { /* no record has type 0: skip a run of zeros without looking thirteen times at each */
            at++;
            while (size - at >= NOVA_LOG_RECORD + 8 && get64(bytes + at + 12) == 0)
                at += 8;
            continue;
        }
        uint32_t found = get32(p + 4), length = get32(p + 8);
        if (!plausible(p) || found < index || length > size - at - NOVA_LOG_RECORD) {
            at++;
            continue;
        }
        uint64_t cost = NOVA_LOG_RECORD + (uint64_t)length;
        if (cost > budget)
            return -1;
        budget -= cost;
        if (nova_log_read(bytes, size, at, seed, found, &record) != NOVA_LOG_WHOLE) {
            at++;
            continue;
        }
        if (*any == SIZE_MAX)
            *any = at;
        if (record.type & NOVA_LOG_FIRST) {
            *opening = at;
            return 0;
        }
        at += NOVA_LOG_RECORD + length;
    }
    return 0;
}

int nova_log_sector_lost(const uint8_t *bytes, size_t from, size_t to, uint64_t base)
{
    for (size_t at = from; at < to;) {
        size_t end = at + (size_t)(512 - (base + at) % 512);
        if (end > to)
            return 0;
        size_t i = at;
        while (i < end && bytes[i] == 0)
            i++;
        if (i == end)
            return 1;
        at = end;
    }
    return 0;
}

size_t nova_log_extent(const uint8_t *bytes, size_t size)
{
    while (size >= 8 && get64(bytes + size - 8) == 0)
        size -= 8;
    while (size && bytes[size - 1] == 0)
        size--;
    return size;
}
