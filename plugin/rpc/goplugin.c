/* go-plugin's own services: health, shutdown, and the broker, which tells where the host's services
 * listen. */
#include "plugin/rpc/goplugin.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "hsm/base/scope.h"
#include "plugin/report/log.h"
#include "plugin/rpc/message.h"
#include "proto/goplugin.pb-c.h"

/* SPIRE brokers one service, with number 1. */
enum { ADDRESSES_MAX = 8 };

static struct {
    pthread_mutex_t lock;
    struct {
        uint32_t id; /* 0 = free */
        char path[RPC_PATH_MAX];
    } addresses[ADDRESSES_MAX];
} broker = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void (*on_shutdown)(void);

void goplugin_open(void (*shutdown)(void))
{
    on_shutdown = shutdown;
}

/* With the lock held. Returns the place of this id; if `make` is set, a free one; otherwise
 * NULL. */
static char *place_of(uint32_t id, bool make)
{
    for (size_t i = 0; i < ADDRESSES_MAX; i++)
        if (broker.addresses[i].id == id)
            return broker.addresses[i].path;
    for (size_t i = 0; make && i < ADDRESSES_MAX; i++)
        if (broker.addresses[i].id == 0) {
            broker.addresses[i].id = id;
            return broker.addresses[i].path;
        }
    return NULL;
}

bool goplugin_host_address(uint32_t id, char *path, size_t size)
{
    const char *place;

    (void)pthread_mutex_lock(&broker.lock);
    place = id > 0 ? place_of(id, false) : NULL;
    if (place)
        (void)snprintf(path, size, "%s", place);
    (void)pthread_mutex_unlock(&broker.lock);
    return place != NULL;
}

static void remember(uint32_t id, const char *path)
{
    char *place;

    (void)pthread_mutex_lock(&broker.lock);
    place = place_of(id, true);
    if (place)
        (void)snprintf(place, RPC_PATH_MAX, "%s", path);
    (void)pthread_mutex_unlock(&broker.lock);
}

static void broker_start_stream(struct rpc_call *call, const uint8_t *request, size_t length)
{
    struct fault fault;
    OWNED(message_scope_free)
    Goplugin__ConnInfo *info =
        message_parse(&goplugin__conn_info__descriptor, request, length, &fault);

    (void)call;
    if (!info)
        log_fault(LOG_DEBUG, &fault, "broker message ignored", NULL);
    else if (info->service_id > 0 && !info->knock && strcmp(info->network, "unix") == 0 &&
             strlen(info->address) < RPC_PATH_MAX)
        remember(info->service_id, info->address);
}

static void health_check(struct rpc_call *call, const uint8_t *request, size_t length)
{
    Goplugin__HealthCheckResponse response = GOPLUGIN__HEALTH_CHECK_RESPONSE__INIT;
    struct fault fault;
    OWNED(message_scope_free)
    Goplugin__HealthCheckRequest *check =
        message_parse(&goplugin__health_check_request__descriptor, request, length, &fault);

    if (!check) {
        rpc_fail(call, &fault);
    } else if (*check->service && strcmp(check->service, "plugin") != 0) {
        (void)fault_set(&fault, FAULT_NOT_FOUND, "unknown service");
        rpc_fail(call, &fault);
    } else {
        response.status = GOPLUGIN__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING;
        message_reply(call, &response.base);
    }
}

static void controller_shutdown(struct rpc_call *call, const uint8_t *request, size_t length)
{
    const Goplugin__Empty response = GOPLUGIN__EMPTY__INIT;

    (void)request;
    (void)length;
    message_reply(call, &response.base);
    on_shutdown();
}

const struct rpc_method goplugin_methods[] = {
    {"/grpc.health.v1.Health/Check", RPC_UNARY, health_check},
    {"/plugin.GRPCBroker/StartStream", RPC_STREAM, broker_start_stream},
    {"/plugin.GRPCController/Shutdown", RPC_UNARY, controller_shutdown},
    {"/plugin.GRPCStdio/StreamStdio", RPC_STREAM, NULL},
    {0},
};
