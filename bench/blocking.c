/* bench/blocking.c - what the kernel gives two threads with blocking sockets: the ceiling that streams are held to.
 *
 * usage: blocking stream SIZE COUNT     one sends SIZE bytes COUNT times, one receives; prints seconds and CPU seconds
 *        blocking rtt SIZE COUNT        round trips; prints seconds and CPU seconds
 * A third argument names the congestion control of both sides. */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static size_t size, count;
static int one, two, trips;

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static double cpu_seconds(void)
{
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static void all(ssize_t (*move)(int, char *, size_t), int fd, char *p, size_t n)
{
    while (n) {
        ssize_t done = move(fd, p, n);
        if (done <= 0)
            exit(2);
        p += done, n -= (size_t)done;
    }
}

static ssize_t put(int fd, char *p, size_t n)
{
    return send(fd, p, n, 0);
}

static ssize_t get(int fd, char *p, size_t n)
{
    return recv(fd, p, n, 0);
}

static void *far_end(void *unused)
{
    char *buffer = malloc(size);
    (void)unused;
    for (size_t i = 0; i < count; i++) {
        all(get, two, buffer, size);
        if (trips)
            all(put, two, buffer, size);
    }
    free(buffer);
    return NULL;
}

int main(int argc, char **argv)
{
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof name;
    int listening = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    pthread_t thread;
    if (argc < 4)
        return 1;
    trips = !strcmp(argv[1], "rtt");
    size = strtoul(argv[2], NULL, 10);
    count = strtoul(argv[3], NULL, 10);
    one = socket(AF_INET, SOCK_STREAM, 0);
    if (argc > 4) { /* before they connect: the accepted side takes it over */
        setsockopt(listening, IPPROTO_TCP, TCP_CONGESTION, argv[4], (socklen_t)strlen(argv[4]));
        setsockopt(one, IPPROTO_TCP, TCP_CONGESTION, argv[4], (socklen_t)strlen(argv[4]));
    }
    if (bind(listening, (struct sockaddr *)&name, length) || listen(listening, 1) ||
        getsockname(listening, (struct sockaddr *)&name, &length) || connect(one, (struct sockaddr *)&name, length))
        return 2;
    two = accept(listening, NULL, NULL);
    setsockopt(one, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    setsockopt(two, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    char *buffer = malloc(size);
    memset(buffer, 1, size);
    double began = seconds(), cpu = cpu_seconds();
    pthread_create(&thread, NULL, far_end, NULL);
    for (size_t i = 0; i < count; i++) {
        all(put, one, buffer, size);
        if (trips)
            all(get, one, buffer, size);
    }
    pthread_join(thread, NULL);
    printf("%.6f %.6f\n", seconds() - began, cpu_seconds() - cpu);
    return 0;
}
