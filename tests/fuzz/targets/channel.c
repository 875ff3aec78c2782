/* tests/fuzz/targets/channel.c - an established session on any bytes, cut anywhere, and what it sends to another one.
 *
 * The first byte chooses: raw bytes; frames whose headers and checksums are made good, so that what is behind them is
 * reached; or messages that one channel sends and another gets, which must be the same in the same order. What is
 * handed out lies inside of its block, and every block is given back. */
#include "channel.h"
#include "fuzz.h"

enum { MESSAGE_MAX = 100000 };

static void begin(nova_channel *c, int lanes)
{
    nova_channel_begin(c);
    c->frame_bytes_max = 1 << 16;
    c->message_bytes_max = MESSAGE_MAX;
    c->payload_bytes = 5000;
    c->queue_bytes_max = 1 << 20;
    c->credit_bytes = c->granted = c->grant = c->announced = c->may_send = 1 << 16;
    c->lanes = (uint32_t)lanes;
    c->sequence_in = c->sequence_out = 5;
}

static void end(nova_channel *c)
{
    nova_channel_end(c);
    nova_channel_free_items(nova_channel_gone(c));
}

/* Take what is ready; the sum of its bytes, so that each is looked at. */
static uint64_t take(nova_channel *c, size_t *count)
{
    nova_message message;
    uint64_t sum = 0;
    int holds;
    while (nova_channel_take(c, &message, &holds)) {
        REQUIRE(message.size <= MESSAGE_MAX);
        REQUIRE(message.at >= message.block->data);
        REQUIRE(message.at + message.size <= message.block->data + message.block->room);
        for (size_t i = 0; i < message.size; i++)
            sum = sum * 31 + message.at[i];
        sum = sum * 31 + message.size;
        if (holds)
            nova_block_drop(message.block);
        nova_channel_consumed(c, nova_cost(message.size));
        (*count)++;
    }
    return sum;
}

/* By the place that the channel names, in steps of `step`. */
static int place(nova_channel *c, const uint8_t *p, size_t n, size_t step)
{
    while (n) {
        struct iovec where[2];
        int places = nova_channel_where(c, where), code;
        REQUIRE(places > 0);
        size_t room = 0, now, done = 0;
        for (int i = 0; i < places; i++)
            room += where[i].iov_len;
        REQUIRE(where[0].iov_len);
        now = n < step ? n : step;
        now = now < room ? now : room;
        for (int i = 0; i < places; i++) {
            size_t part = now - done < where[i].iov_len ? now - done : where[i].iov_len;
            if (part)
                memcpy(where[i].iov_base, p + done, part);
            done += part;
        }
        p += now, n -= now;
        if ((code = nova_channel_arrived(c, now, 7)))
            return code;
    }
    return 0;
}

static void whole_frames(nova_channel *c, const uint8_t *data, size_t size)
{
    uint64_t sequence = c->sequence_in;
    while (size > 4) {
        size_t n = (size_t)(data[0] << 8 | data[1]) % (size - 3);
        uint8_t *frame = malloc(NOVA_FRAME_HEADER + n);
        nova_frame header = {.type = data[2] % 9,
                             .flags = n >= NOVA_FRAME_TRACE ? data[2] >> 7 : 0,
                             .length = (uint32_t)n,
                             .stream = data[2] >> 4 & 3,
                             .sequence = sequence++};
        memcpy(frame + NOVA_FRAME_HEADER, data + 3, n);
        nova_frame_write(frame, &header);
        size_t count = 0;
        int code = place(c, frame, NOVA_FRAME_HEADER + n, data[2] + 1u);
        free(frame);
        take(c, &count);
        if (code)
            return;
        data += 3 + n, size -= 3 + n;
    }
}

static void talk(nova_channel *one, nova_channel *two, const uint8_t *data, size_t size)
{
    static uint8_t content[MESSAGE_MAX];
    uint8_t head[64], control[NOVA_FRAME_HEADER + 64];
    size_t queued = 0, got = 0, turns = 0;
    struct iovec parts[3];
    while ((size >= 3 || one->queue_bytes) && turns++ < 20000) {
        if (size >= 3) {
            size_t n = (size_t)(data[0] << 8 | data[1]) % 20000 * (data[2] >> 2 & 1) + data[1];
            memset(content, data[2], n);
            int code = data[2] & 8 ? nova_channel_lend(one, data[2] & 3, content, n, NULL)
                                   : nova_channel_copy(one, data[2] & 3, content, n);
            REQUIRE(code >= 0);
            queued += code == 0;
            data += 3, size -= 3;
        }
        int count = nova_channel_frame(one, head, 1, parts);
        for (int i = 0; i < count; i++)
            REQUIRE(!place(two, parts[i].iov_base, parts[i].iov_len, 1 + turns % 4096));
        take(two, &got);
        while ((count = nova_channel_frame(two, control, 0, parts)))
            for (int i = 0; i < count; i++)
                REQUIRE(!nova_channel_feed(one, parts[i].iov_base, parts[i].iov_len, 9));
    }
    REQUIRE(got == queued);
    REQUIRE(one->data_out == two->arrived && two->arrived == two->consumed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t waiting, held, count = 0;
    nova_channel *one = malloc(sizeof *one), *two = malloc(sizeof *two);
    if (!size) {
        free(one), free(two);
        return 0;
    }
    begin(one, data[0] & 4 ? NOVA_LANES : 1);
    begin(two, data[0] & 4 ? NOVA_LANES : 1);
    if (data[0] & 8) {
        static const uint8_t key[32];
        one->mac_in.kind = one->mac_out.kind = two->mac_in.kind = two->mac_out.kind = NOVA_MAC_BLAKE3;
        one->mac_in.mode = one->mac_out.mode = two->mac_in.mode = two->mac_out.mode = nova_blake3_keyed(key);
    }
    if ((data[0] & 3) == 0)
        place(one, data + 1, size - 1, data[0] + 1u);
    else if ((data[0] & 3) == 1)
        whole_frames(one, data + 1, size - 1);
    else
        talk(one, two, data + 1, size - 1);
    take(one, &count);
    end(one);
    end(two);
    free(one), free(two);
    nova_pool_count(&waiting, &held);
    REQUIRE(!held);
    return 0;
}
