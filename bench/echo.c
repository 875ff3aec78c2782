/* bench/echo.c - the C side of bench_uring.py: an echo server on plain epoll, and the load for every server.
 *
 *   echo serve                    prints its port, serves until its last connection ends, prints the same as echo_servers.py
 *   echo load PORT CONNECTIONS MESSAGES BYTES
 *                                 each connection has one message under way; a round for each line of input, and its
 *                                 nanoseconds when it is over
 *
 * The load runs on our own engine, so that it costs less than the servers that it measures. */
#define _GNU_SOURCE
#include "uring.h"
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static int serve(void)
{
    static char buffer[65536];
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof name;
    int server = socket(AF_INET, SOCK_STREAM, 0), poll = epoll_create1(0), open = 0;
    unsigned long messages = 0, syscalls = 0;
    if (bind(server, (struct sockaddr *)&name, size) || listen(server, 1024) ||
        getsockname(server, (struct sockaddr *)&name, &size))
        die("listen");
    printf("%d\n", ntohs(name.sin_port));
    fflush(stdout);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = server}, events[256];
    epoll_ctl(poll, EPOLL_CTL_ADD, server, &event);
    do {
        int count = epoll_wait(poll, events, 256, -1);
        syscalls++;
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == server) {
                int peer = accept4(server, NULL, NULL, SOCK_NONBLOCK);
                setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
                event = (struct epoll_event){.events = EPOLLIN, .data.fd = peer};
                epoll_ctl(poll, EPOLL_CTL_ADD, peer, &event);
                open++;
                continue;
            }
            ssize_t n = recv(fd, buffer, sizeof buffer, 0);
            syscalls++;
            if (n > 0) {
                if (send(fd, buffer, (size_t)n, MSG_NOSIGNAL) != n)
                    die("send");
                syscalls++;
                messages++;
            } else if (n == 0 || errno != EAGAIN) {
                close(fd);
                open--;
            }
        }
    } while (open || !messages);
    struct timespec cpu;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
    printf("{\"messages\": %lu, \"syscalls\": %lu, \"cpu_s\": %.6f}\n", messages, syscalls,
           (double)cpu.tv_sec + (double)cpu.tv_nsec / 1e9);
    return 0;
}

static long long now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

/* Have every connection send and wait for its echo until `total` echoes have come. */
static void run_round(nova_engine *e, uint32_t *all, int count, long total, uint64_t bytes)
{
    static uint8_t slab[1 << 22], message[1 << 16];
    static uint64_t offsets[8193], out_offsets[8193];
    static uint32_t from[8192], to[8192];
    static uint32_t got[1 << 16];
    for (int i = 0; i <= 8192; i++)
        out_offsets[i] = 0;
    long begun = count, done = 0;
    for (int i = 0; i < count; i++)
        nova_engine_send(e, all[i], message, bytes, 0);
    while (done < total) {
        int n = nova_engine_recv_batch(e, slab, sizeof slab, offsets, from, 8192, -1), out = 0;
        if (n <= 0) { /* 0: a connection has ended */
            fprintf(stderr, "load: %d\n", n);
            exit(1);
        }
        for (int i = 0; i < n; i++) {
            uint32_t *have = &got[from[i] & 0xffff];
            *have += (uint32_t)(offsets[i + 1] - offsets[i]);
            if (*have < bytes)
                continue;
            *have -= (uint32_t)bytes;
            done++;
            if (begun < total)
                begun++, to[out++] = from[i];
        }
        for (int i = 0; i < out; i++) /* one copy of the message serves all */
            nova_engine_send_batch(e, message, bytes, (uint64_t[]){0, bytes}, &to[i], 1);
    }
}

static int load(char **argument)
{
    int port = atoi(argument[0]), count = atoi(argument[1]);
    long total = atol(argument[2]), bytes = atol(argument[3]);
    char cause[256];
    int error;
    nova_engine_options options = {
        .engine = nova_engine_probe(NOVA_ENGINE_URING, cause, sizeof cause) ? NOVA_ENGINE_EPOLL : NOVA_ENGINE_URING,
        .flags = NOVA_ENGINE_DRIVEN,
        .submissions = 1024,
        .completions = 8192,
        .buffers = 2048,
        .buffer_bytes = 4096,
        .connections_max = 8192,
        .queue_bytes_low = 1 << 20};
    nova_engine *e = nova_engine_open(&options, &error, cause, sizeof cause);
    if (!e) {
        fprintf(stderr, "load: %s\n", cause);
        return 1;
    }
    uint32_t *all = calloc((size_t)count, sizeof *all);
    for (int i = 0; i < count; i++) {
        int64_t connection = nova_engine_connect(e, "127.0.0.1", (uint16_t)port);
        if (connection < 0)
            return 1;
        all[i] = (uint32_t)connection;
    }
    nova_event events[64];
    for (int up = 0; up < count;) {
        nova_engine_turn(e, -1);
        for (int n; (n = nova_engine_events(e, events, 64)) > 0;)
            for (int i = 0; i < n; i++) {
                up += events[i].kind == NOVA_CONNECTED;
                if (events[i].kind == NOVA_CLOSED) {
                    fprintf(stderr, "load: %s\n", strerror(events[i].result));
                    return 1;
                }
            }
    }
    run_round(e, all, count, total / 10 + count, (uint64_t)bytes); /* warm */
    while (getchar() != EOF) {
        long long began = now_ns();
        run_round(e, all, count, total, (uint64_t)bytes);
        printf("%lld\n", now_ns() - began);
        fflush(stdout);
    }
    for (int i = 0; i < count; i++)
        nova_engine_shut(e, all[i]);
    for (int i = 0; i < 10; i++)
        nova_engine_turn(e, 1000000);
    nova_engine_close(e);
    return 0;
}

int main(int count, char **argument)
{
    if (count == 2 && !strcmp(argument[1], "serve"))
        return serve();
    if (count == 6 && !strcmp(argument[1], "load"))
        return load(argument + 2);
    fprintf(stderr, "usage: echo serve | echo load PORT CONNECTIONS MESSAGES BYTES\n");
    return 2;
}
