/* SPIRE's Config service: Configure and Validate read plugin_data, on the slow lane. */
#include "plugin/service/svc.h"

#include <stdlib.h>
#include <string.h>

#include "hsm/base/clock.h"
#include "hsm/base/scope.h"
#include "plugin/report/log.h"
#include "plugin/rpc/message.h"
#include "plugin/service/lane.h"
#include "proto/spire.pb-c.h"

/* A Configure may wait a startup_wait for its token, and the next one behind it. */
static const int64_t patience = 180 * CLOCK_SECOND;

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
};

/* plugin_data may hold a PIN. */
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

/* All of them: the status that goes back has room for the first few only. */
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

static void run_configure(void *context)
{
    OWNED(scope_free) struct config_job *job = context;
    struct fault fault;
    OWNED(free_request) Spire__ConfigureRequest *request = read_request(job, &fault);

    if (!request || configure(request, &fault) != 0)
        rpc_fail(job->call, &fault);
    else
        rpc_reply(job->call, (const uint8_t *)"", 0);
}

/* `spire-server validate` takes any note for a mistake: what is only remarkable goes to the
 * log. */
static void reply_notes(struct rpc_call *call, bool valid, struct config_notes *notes)
{
    Spire__ValidateResponse response = SPIRE__VALIDATE_RESPONSE__INIT;
    char *texts[CONFIG_NOTES_MAX];

    response.valid = valid;
    response.notes = texts;
    if (valid)
        log_notes(notes);
    else
        response.n_notes = count_notes(notes);
    for (size_t i = 0; i < response.n_notes; i++)
        texts[i] = notes->notes[i].text;
    message_reply(call, &response.base);
}

static void run_validate(void *context)
{
    OWNED(scope_free) struct config_job *job = context;
    struct fault fault;
    OWNED(free_request) Spire__ConfigureRequest *request = read_request(job, &fault);
    OWNED(config_wipe) struct config config = {.kind = role->kind};
    struct config_notes notes;
    bool valid;

    if (!request) {
        rpc_fail(job->call, &fault);
        return;
    }
    valid = read_config(request, &config, &notes) == 0;
    reply_notes(job->call, valid, &notes);
}

static void fail_config(void *context, const struct fault *fault)
{
    OWNED(scope_free) struct config_job *job = context;

    rpc_fail(job->call, fault);
}

static void submit_config(const char *what, lane_run *run, struct config_job job)
{
    struct config_job *kept = malloc(sizeof *kept);
    struct fault fault;

    if (!kept) {
        (void)fault_set(&fault, FAULT_RESOURCE_EXHAUSTED, "out of memory");
        rpc_fail(job.call, &fault);
        return;
    }
    *kept = job;
    lane_submit(what, patience, run, fail_config, kept);
}

static void on_configure(struct rpc_call *call, const uint8_t *bytes, size_t length)
{
    submit_config("Configure", run_configure, (struct config_job){call, bytes, length});
}

static void on_validate(struct rpc_call *call, const uint8_t *bytes, size_t length)
{
    submit_config("Validate", run_validate, (struct config_job){call, bytes, length});
}

const struct rpc_method config_methods[] = {
    {"/spire.service.common.config.v1.Config/Configure", RPC_UNARY, on_configure},
    {"/spire.service.common.config.v1.Config/Validate", RPC_UNARY, on_validate},
    {0},
};
