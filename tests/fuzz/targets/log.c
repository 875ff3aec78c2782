/* tests/fuzz/targets/log.c - segments of the write-ahead log on any bytes.
 *
 * The first byte says how many records are given a right checksum, as far as they parse; damage to checksums alone would
 * keep the fuzzer out. A search finds what reading at every offset finds, and whatever reads writes back the same. */
#include "log.h"
#include "fuzz.h"

static uint32_t get32(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void check_header(const uint8_t *data, size_t size)
{
    uint8_t header[NOVA_LOG_HEADER];
    uint32_t version = 0;
    uint64_t id, first;
    if (nova_log_header_read(data, size, &version, &id, &first))
        return;
    REQUIRE(version == NOVA_LOG_VERSION);
    nova_log_header_write(header, id, first);
    REQUIRE(!memcmp(header, data, 12)); /* what is reserved may say more some day */
}

static void check_records(const uint8_t *bytes, size_t size, uint32_t seed)
{
    nova_log_record record;
    size_t any = SIZE_MAX, opening = SIZE_MAX, found_any, found_opening;
    uint32_t index = size ? bytes[size - 1] % 3 : 0;
    for (size_t at = 0; size >= NOVA_LOG_RECORD && at <= size - NOVA_LOG_RECORD && opening == SIZE_MAX;) {
        uint32_t here = get32(bytes + at + 4);
        if (here < index || nova_log_read(bytes, size, at, seed, here, &record) != NOVA_LOG_WHOLE) {
            at++;
            continue;
        }
        REQUIRE(record.index == here && record.payload == bytes + at + NOVA_LOG_RECORD);
        REQUIRE(record.length <= size - at - NOVA_LOG_RECORD);
        REQUIRE(nova_log_read(bytes, size, at, seed, here + 1, &record) != NOVA_LOG_WHOLE);
        uint8_t *again = malloc(NOVA_LOG_RECORD + record.length);
        size_t whole = nova_log_put(again, here, record.type, record.payload, record.length);
        nova_log_seal(again, whole, seed);
        REQUIRE(!memcmp(again, bytes + at, whole));
        free(again);
        if (any == SIZE_MAX)
            any = at;
        if (record.type & NOVA_LOG_FIRST)
            opening = at;
        at += whole;
    }
    int given_up = nova_log_find(bytes, size, 0, seed, index, &found_any, &found_opening);
    if (!given_up)
        REQUIRE(found_any == any && found_opening == opening);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size)
        return 0;
    unsigned right = data[0];
    uint8_t *bytes = malloc(size);
    uint32_t seed = nova_log_seed(7, right);
    size_t extent = nova_log_extent(data, size);
    REQUIRE(nova_crc32c(seed, data, size) == nova_crc32c_software(seed, data, size));
    REQUIRE(extent <= size && (!extent || data[extent - 1]));
    for (size_t i = extent; i < size; i++)
        REQUIRE(!data[i]);
    if (nova_log_sector_lost(data, 0, size, right))
        REQUIRE(memchr(data, 0, size));
    size--, data++;
    memcpy(bytes, data, size);
    check_header(bytes, size);
    if (size >= NOVA_LOG_HEADER && right & 1) {
        uint32_t crc = nova_crc32c(0, bytes, NOVA_LOG_HEADER - 4);
        for (int i = 0; i < 4; i++)
            bytes[NOVA_LOG_HEADER - 4 + i] = (uint8_t)(crc >> 8 * i);
        check_header(bytes, size);
        memcpy(bytes, data, size);
    }
    for (size_t at = 0; right-- && size - at >= NOVA_LOG_RECORD;) {
        size_t whole = NOVA_LOG_RECORD + (size_t)get32(bytes + at + 8);
        if (whole > size - at)
            break;
        nova_log_seal(bytes + at, whole, seed);
        at += whole;
    }
    check_records(bytes, size, seed);
    free(bytes);
    return 0;
}
