/* The room of hsm_room.h. */
#include "tests/support/hsm_room.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { ROOM_LOOKS = 500, ROOM_LOOK_PAUSE = 10000 /* us */ };

struct softhsm softhsm;

int room_setup(void **state)
{
    (void)state;
    softhsm_make(&softhsm);
    softhsm_token("spire");
    return 0;
}

int room_teardown(void **state)
{
    (void)state;
    softhsm_remove(&softhsm);
    return 0;
}

uint32_t room_id_length(void)
{
    return softhsm_is("yubihsm") ? 2 : HSM_ID_MAX;
}

size_t room_label_max(void)
{
    return softhsm_is("yubihsm") ? 40 : HSM_LABEL_MAX;
}

struct hsm_settings room_settings(const char *uri)
{
    struct hsm_settings settings = {.pin_kind = HSM_PIN_FILE, .sessions = 4};

    softhsm_module(settings.module, sizeof settings.module);
    (void)snprintf(settings.token, sizeof settings.token, "%s", uri);
    (void)snprintf(settings.pin_text, sizeof settings.pin_text, "%s", softhsm.pin_file);
    (void)snprintf(settings.latch, sizeof settings.latch, "%s/latch", softhsm.folder);
    return settings;
}

struct hsm_settings room_good(void)
{
    return room_settings("pkcs11:token=spire");
}

struct hsm_settings room_faulty(const char *script)
{
    struct hsm_settings settings = room_good();

    softhsm_faulty_module(settings.module, sizeof settings.module);
    softhsm_script(script);
    return settings;
}

struct hsm_token *room_open(const struct hsm_settings *settings)
{
    struct hsm_token *token = NULL;
    struct hsm_token_info info;
    struct fault fault = {.code = FAULT_NONE};

    if (hsm_open(settings, &token, &info, &fault) != 0)
        fail_msg("hsm_open: %s", fault.message);
    return token;
}

struct fault room_refused(const struct hsm_settings *settings, enum fault_code code,
                          const char *words)
{
    struct hsm_token *token = NULL;
    struct hsm_token_info info;
    struct fault fault = {.code = FAULT_NONE};

    assert_int_equal(hsm_open(settings, &token, &info, &fault), -1);
    assert_null(token);
    if (fault.code != code || !strstr(fault.message, words))
        fail_msg("code %d, '%s'", (int)fault.code, fault.message);
    assert_null(strstr(fault.message, SOFTHSM_PIN));
    return fault;
}

void room_opens(const struct hsm_settings *settings)
{
    hsm_close(room_open(settings));
}

struct hsm_request room_request(enum hsm_op op, const char *name, enum hsm_key_type type)
{
    struct hsm_request request = {.op = op, .type = type, .prefix = "sp1-"};

    (void)snprintf(request.key.label, sizeof request.key.label, "%s%s", ROOM_LABEL, name);
    request.key.id_length = room_id_length();
    memset(request.key.id, 0x40, request.key.id_length);
    memcpy(request.key.id, name, strnlen(name, request.key.id_length));
    return request;
}

struct hsm_reply room_execute(struct hsm_token *token, const struct hsm_request *request)
{
    struct hsm_reply reply;

    hsm_execute(token, request, &reply, NULL, NULL);
    return reply;
}

struct hsm_reply room_must(struct hsm_token *token, const struct hsm_request *request)
{
    struct hsm_reply reply = room_execute(token, request);

    if (reply.fault.code != FAULT_NONE)
        fail_msg("operation %d: %s", (int)request->op, reply.fault.message);
    return reply;
}

/* A token that is full says so, and has room again. */
static void make_room(struct hsm_token *token, const struct hsm_request *request)
{
    assert_int_equal(room_execute(token, request).fault.code, FAULT_RESOURCE_EXHAUSTED);
    softhsm_habits("");
}

struct hsm_reply room_make(struct hsm_token *token, const struct hsm_request *request)
{
    struct hsm_request look = *request;
    struct hsm_reply reply;

    if (softhsm_is("full"))
        make_room(token, request);
    reply = room_execute(token, request);
    look.op = HSM_PROVE;
    for (int looks = 0; *softhsm_profile() != '\0' && looks < ROOM_LOOKS; looks++) {
        if (reply.fault.code != FAULT_ABORTED && reply.fault.code != FAULT_PERMISSION_DENIED &&
            (reply.fault.code != FAULT_NONE || reply.state != HSM_ABSENT))
            break;
        (void)usleep(ROOM_LOOK_PAUSE);
        reply = room_execute(token, &look);
    }
    if (softhsm_is("full"))
        softhsm_habits(softhsm_profile());
    if (reply.fault.code != FAULT_NONE)
        fail_msg("%s: %s", request->key.label, reply.fault.message);
    return reply;
}

struct hsm_public_key room_generate(struct hsm_token *token, const char *name,
                                    enum hsm_key_type type)
{
    struct hsm_request request = room_request(HSM_GENERATE, name, type);
    struct hsm_reply reply = room_make(token, &request);

    if (reply.state != HSM_COMPLETE)
        fail_msg("%s is not whole: state %d, %s", name, (int)reply.state, reply.why);
    return reply.public_key;
}

enum hsm_state room_state(struct hsm_token *token, const char *name)
{
    struct hsm_request request = room_request(HSM_PROVE, name, HSM_KEY_NONE);

    return room_must(token, &request).state;
}

struct hsm_request room_signature(const char *name, const struct hsm_public_key *key,
                                  enum hsm_hash hash, uint32_t salt)
{
    struct hsm_request request = room_request(HSM_SIGN, name, key->type);

    request.hash = hash;
    request.digest_length = (uint32_t)hsm_hash_length(hash);
    for (uint32_t i = 0; i < request.digest_length; i++)
        request.digest[i] = (uint8_t)(i * 7 + 1);
    memcpy(request.digest, &salt, sizeof salt);
    memcpy(request.fingerprint, key->fingerprint, sizeof request.fingerprint);
    return request;
}
