/* Configure and Validate of every role. Both go through the slow lane, as a token may need minutes
 * to open. */
#include "plugin/service/svc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hsm/base/clock.h"
#include "hsm/base/scope.h"
#include "plugin/report/log.h"
#include "plugin/rpc/message.h"
#include "plugin/service/lane.h"
#include "proto/spire.pb-c.h"

static const struct role *role;

void config_open(const struct role *of_this_process)
{
    role = of_this_process;
}

/* A call on its way through the slow lane. The bytes are valid until it is answered. */
struct config_job {
    struct rpc_call *call;
    const uint8_t *bytes;
    size_t length;
    bool valid; /* this and the notes are the result of Validate */
    struct config_notes notes;
};

/* plugin_data may hold a PIN, so it is wiped. */
static void free_request(Spire__ConfigureRequest **request)
{
    if (*request)
        explicit_bzero((*request)->hcl_configuration, strlen((*request)->hcl_configuration));
    message_free(*request);
}

static Spire__ConfigureRequest *read_request(const struct config_job *job, struct fault *fault)
{
    Spire__ConfigureRequest *request =
        message_parse(&spire__configure_request__descriptor, job->bytes, job->length, fault);

    if (!request)
        return NULL;
    if (request->core_configuration && *request->core_configuration->trust_domain)
        return request;
    (void)fault_set(fault, FAULT_INVALID_ARGUMENT,
                    request->core_configuration
                        ? "the host's core configuration has no trust domain"
                        : "the request has no core configuration (the host's trust domain)");
    free_request(&request);
    return NULL;
}

static int read_config(const Spire__ConfigureRequest *request, struct config *config,
                       struct config_notes *notes)
{
    memset(notes, 0, sizeof *notes);
    return config_read(role->kind, request->core_configuration->trust_domain,
                       request->hcl_configuration, strlen(request->hcl_configuration), config,
                       notes);
}

static size_t count_notes(const struct config_notes *notes)
{
    size_t count = notes->errors + notes->warnings;

    return count < CONFIG_NOTES_MAX ? count : CONFIG_NOTES_MAX;
}

/* All notes: the status that SPIRE gets has room for the first few only. */
static void log_notes(const struct config_notes *notes)
{
    for (size_t i = 0; i < count_notes(notes); i++)
        log_write(notes->notes[i].error ? LOG_ERROR : LOG_WARN, "plugin_data", "note",
                  notes->notes[i].text, NULL);
}

static int configure(const Spire__ConfigureRequest *request, struct fault *fault)
{
    OWNED(config_wipe) struct config config = {.kind = role->kind};
    struct config_notes notes;

    if (read_config(request, &config, &notes) != 0) {
        log_notes(&notes);
        return config_fault(&notes, fault);
    }
    log_notes(&notes);
    if (role->configure(&config, fault) != 0)
        return -1;
    log_write(LOG_INFO, "configured", "trust_domain", config.trust_domain, NULL);
    return 0;
}

static int run_configure(void *context, struct fault *fault)
{
    const struct config_job *job = context;
    OWNED(free_request) Spire__ConfigureRequest *request = read_request(job, fault);

    return request ? configure(request, fault) : -1;
}

static void answer_configure(void *context, enum lane_outcome outcome, const struct fault *fault)
{
    const struct config_job *job = context;

    (void)outcome;
    if (fault)
        rpc_fail(job->call, fault);
    else
        rpc_reply(job->call, (const uint8_t *)"", 0);
}

static int run_validate(void *context, struct fault *fault)
{
    struct config_job *job = context;
    OWNED(free_request) Spire__ConfigureRequest *request = read_request(job, fault);
    OWNED(config_wipe) struct config config = {.kind = role->kind};

    if (!request)
        return -1;
    job->valid = read_config(request, &config, &job->notes) == 0;
    return 0;
}

/* `spire-server validate` counts any note as a mistake, so warnings go to the log. */
static void reply_notes(struct config_job *job)
{
    Spire__ValidateResponse response = SPIRE__VALIDATE_RESPONSE__INIT;
    char *texts[CONFIG_NOTES_MAX];

    response.valid = job->valid;
    response.notes = texts;
    if (job->valid)
        log_notes(&job->notes);
    else
        response.n_notes = count_notes(&job->notes);
    for (size_t i = 0; i < response.n_notes; i++)
        texts[i] = job->notes.notes[i].text;
    message_reply(job->call, &response.base);
}

static void answer_validate(void *context, enum lane_outcome outcome, const struct fault *fault)
{
    struct config_job *job = context;

    (void)outcome;
    if (fault)
        rpc_fail(job->call, fault);
    else
        reply_notes(job);
}

/* A Configure may wait for its token for startup_wait, and the next one waits behind it. Its work
 * has no limit here, as startup_wait is the operator's limit. */
static const struct lane_kind configure_job = {
    .queue_limit = 180 * CLOCK_SECOND,
    .run_limit = CLOCK_NEVER,
    .run = run_configure,
    .answer = answer_configure,
    .release = free,
};

static const struct lane_kind validate_job = {
    .queue_limit = 180 * CLOCK_SECOND,
    .run_limit = CLOCK_NEVER,
    .run = run_validate,
    .answer = answer_validate,
    .release = free,
};

static void submit_config(const char *what, const struct lane_kind *kind, struct config_job job)
{
    struct config_job *kept = malloc(sizeof *kept);
    struct fault fault;

    if (!kept) {
        (void)fault_set(&fault, FAULT_RESOURCE_EXHAUSTED, "out of memory");
        rpc_fail(job.call, &fault);
        return;
    }
    *kept = job;
    lane_submit(what, kind, kept);
}

static void on_configure(struct rpc_call *call, const uint8_t *bytes, size_t length)
{
    submit_config("Configure", &configure_job,
                  (struct config_job){.call = call, .bytes = bytes, .length = length});
}

static void on_validate(struct rpc_call *call, const uint8_t *bytes, size_t length)
{
    submit_config("Validate", &validate_job,
                  (struct config_job){.call = call, .bytes = bytes, .length = length});
}

const struct rpc_method config_methods[] = {
    {"/spire.service.common.config.v1.Config/Configure", RPC_UNARY, on_configure},
    {"/spire.service.common.config.v1.Config/Validate", RPC_UNARY, on_validate},
    {0},
};
