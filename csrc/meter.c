/* csrc/meter.c */
#include "meter.h"

#include <math.h>

/* 1 / ln(gamma) and gamma for an error of 1%. */
static const double PER_LN = 49.99833328888678;
static const double GAMMA = 1.02020202020202020;

size_t nova_meter_bucket(const double *bounds, size_t n, double v)
{
    size_t at = 0;
    if (n <= 32) { /* short rows: counting is faster than branching */
        for (size_t i = 0; i < n; i++)
            at += !(v <= bounds[i]);
        return at;
    }
    size_t end = n;
    while (at < end) {
        size_t middle = at + (end - at) / 2;
        if (v <= bounds[middle])
            end = middle;
        else
            at = middle + 1;
    }
    return at;
}

int32_t nova_sketch_bin(double v)
{
    return (int32_t)ceil(log(v) * PER_LN);
}

double nova_sketch_quantile(const uint64_t *bins, size_t size, int32_t low, uint64_t zeros, uint64_t count, double q)
{
    uint64_t rank = (uint64_t)(q * (double)(count - 1)), seen = zeros;
    if (rank < seen)
        return 0;
    size_t i = 0;
    while (i + 1 < size && (seen += bins[i]) <= rank)
        i++;
    return 2 * pow(GAMMA, (double)(low + (int32_t)i)) / (GAMMA + 1);
}
