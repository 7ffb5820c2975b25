/* A supervisor's gauges: its state while it works, for operators. */
#include "hsm/base/clock.h"
#include "plugin/worker/supervisor_private.h"

static uint32_t busy_sessions(const struct supervisor *s)
{
    uint32_t busy = 0;

    for (size_t i = 0; s->worker == WORKER_READY && i < HSM_SESSIONS_MAX; i++)
        busy += atomic_load(&s->child.page->slots[i].number) != 0;
    return busy;
}

void supervisor_measure(struct supervisor *s, struct supervisor_figures *figures)
{
    const struct patience *patience = &s->jobs.patience;
    int64_t now = clock_now();
    int64_t well;
    int64_t waited;

    supervisor_lock(s);
    well = patience->well_at > patience->born ? patience->well_at : patience->born;
    *figures = (struct supervisor_figures){
        .away = s->worker == WORKER_READY ? 0 : now - s->away_since,
        .silent = now > well ? now - well : 0,
        .queued = jobs_queued(&s->jobs, now, &waited),
        .busy = busy_sessions(s),
        .sessions = s->info.sessions,
        .opened_in = s->first_took,
    };
    figures->waited = waited;
    supervisor_unlock(s);
}
