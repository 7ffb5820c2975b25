#include "plugin/report/metrics.h"

#include <stdatomic.h>

static atomic_uint counts[METRICS];

void metrics_count(enum metric metric)
{
    atomic_fetch_add(&counts[metric], 1);
}

unsigned metrics_pending(enum metric metric)
{
    return atomic_load(&counts[metric]);
}

void metrics_take(enum metric metric, unsigned count)
{
    atomic_fetch_sub(&counts[metric], count);
}
