/* Every figure that the host is told. docs/metrics.md has the same table, and unit/metrics.c
 * compares both. */
#include "plugin/report/metrics.h"

typedef const struct metric_label labels[METRIC_LABELS];

static labels by_nothing = {{NULL, NULL}};
static labels by_role = {{"role", NULL}};
static labels by_role_and_path = {{"role", NULL}, {"path", NULL}};
static labels by_key = {{"key_id", NULL}};
static labels by_key_and_code = {{"key_id", NULL}, {"code", NULL}};
static labels by_call_and_part = {{"call", "sign,generate"}, {"part", "all,wait,token"}};
static labels by_after = {{"after", "fault,worker"}};
static labels by_how = {{"how", "died,hung,replaced,refused"}};
static labels by_state = {{"state", "served,missing,condemned,attempted,found,previous"}};
static labels by_whose = {{"whose", "ours,others"}};

const struct metric_row metric_table[METRICS] = {
    [METRIC_HEARTBEAT] = {"heartbeat", METRIC_COUNTER, METRIC_EVERYBODYS, by_role,
                          .meaning = "counts up every 5 s while the plugin lives; all other "
                                     "figures stay as they were when it ends"},
    [METRIC_TOKEN_UP] = {"token_up", METRIC_GAUGE, METRIC_KEYMANAGERS, by_nothing,
                         .meaning = "1 while a worker has the token open, else 0"},
    [METRIC_TOKEN_AWAY] = {"token_away_seconds", METRIC_GAUGE, METRIC_KEYMANAGERS, by_nothing,
                           .meaning =
                               "for how long no worker has had the token open; 0 while one has"},
    [METRIC_TOKEN_SILENT] =
        {"token_silent_seconds", METRIC_GAUGE, METRIC_KEYMANAGERS, by_nothing,
         .meaning =
             "since the token last did what it was asked; an idle one is asked every keep_alive"},
    [METRIC_SIGNATURES] =
        {"signatures", METRIC_COUNTER, METRIC_KEYMANAGERS, by_key_and_code,
         .meaning =
             "SignData calls answered, by gRPC code; key_id is empty where no such key is served"},
    [METRIC_SIGNATURES_FAILED] = {"signatures_failed", METRIC_COUNTER, METRIC_KEYMANAGERS,
                                  by_nothing,
                                  .meaning = "SignData calls answered with another code than OK"},
    [METRIC_KEY_MADE] = {"key_made", METRIC_COUNTER, METRIC_KEYMANAGERS, by_nothing,
                         .meaning = "keys made and served"},
    [METRIC_KEY_NOT_MADE] = {"key_not_made", METRIC_COUNTER, METRIC_KEYMANAGERS, by_key_and_code,
                             .meaning = "GenerateKey calls that failed, by gRPC code"},
    [METRIC_KEY_DESTROYED] = {"key_destroyed", METRIC_COUNTER, METRIC_KEYMANAGERS, by_nothing,
                              .meaning = "superseded keys destroyed on the token"},
    [METRIC_CALLS] = {"calls", METRIC_COUNTER, METRIC_KEYMANAGERS, by_call_and_part,
                      .meaning = "calls that went well and have the part: all of it, the wait for "
                                 "a session (with tries that failed), the worker and the token"},
    [METRIC_CALL_TIME] = {"call_milliseconds", METRIC_COUNTER, METRIC_KEYMANAGERS, by_call_and_part,
                          .meaning = "time that calls took; divided by them it is the mean. What "
                                     "all has beyond wait and token is the plugin's own"},
    [METRIC_CALL_SLOWEST] = {"call_elapsed_time", METRIC_SAMPLE, METRIC_KEYMANAGERS,
                             by_call_and_part,
                             .meaning = "milliseconds of the slowest call of each second"},
    [METRIC_QUEUE_LENGTH] = {"queue_length", METRIC_GAUGE, METRIC_KEYMANAGERS, by_nothing,
                             .meaning = "requests to the token that wait for a session"},
    [METRIC_QUEUE_WAIT] = {"queue_wait_seconds", METRIC_GAUGE, METRIC_KEYMANAGERS, by_nothing,
                           .meaning = "for how long the one that has waited longest has waited"},
    [METRIC_SESSIONS_BUSY] = {"sessions_busy", METRIC_GAUGE, METRIC_KEYMANAGERS, by_nothing,
                              .meaning = "sessions at work at the moment of telling"},
    [METRIC_SESSIONS_LIMIT] =
        {"sessions_limit", METRIC_GAUGE, METRIC_KEYMANAGERS, by_nothing,
         .meaning = "sessions there are: max_sessions, or fewer if the token has fewer"},
    [METRIC_ASKED_AGAIN] = {"asked_again", METRIC_COUNTER, METRIC_KEYMANAGERS, by_after,
                            .meaning = "requests asked again, so that no call fails: after a fault "
                                       "of the token, or the end of a worker"},
    [METRIC_WORKER_ENDED] =
        {"worker_ended", METRIC_COUNTER, METRIC_KEYMANAGERS, by_how,
         .meaning = "workers that were replaced: it ended by itself, it was ended as it hung, a "
                    "fresh one was wanted, or the token could not be opened"},
    [METRIC_PIN_REFUSED] =
        {"pin_refused", METRIC_COUNTER, METRIC_KEYMANAGERS, by_nothing,
         .meaning =
             "workers whose PIN was refused; it is not tried again until its source changes"},
    [METRIC_KEYS] = {"keys", METRIC_GAUGE, METRIC_KEYMANAGERS, by_state,
                     .meaning = "keys in the record, by state; previous: still served from there"},
    [METRIC_KEY_AGE] = {"key_age_seconds", METRIC_GAUGE, METRIC_KEYMANAGERS, by_key,
                        .meaning = "since the key served for this id was made"},
    [METRIC_OBJECTS] = {"objects", METRIC_GAUGE, METRIC_KEYMANAGERS, by_whose,
                        .meaning =
                            "private keys on the token when they were last counted, after the "
                            "start or hourly: of this trust domain, all others"},
    [METRIC_BUNDLE_AGE] = {"bundle_age_seconds", METRIC_GAUGE, METRIC_PUBLISHERS, by_role_and_path,
                           .meaning = "since the bundle was last delivered without a failure, "
                                      "changed or not; SPIRE delivers every 30 s"},
    [METRIC_BUNDLE_SEQUENCE] = {"bundle_sequence_number", METRIC_GAUGE, METRIC_PUBLISHERS,
                                by_role_and_path, .meaning = "of the bundle delivered last"},
    [METRIC_BUNDLE_BYTES] = {"bundle_bytes", METRIC_GAUGE, METRIC_PUBLISHERS, by_role_and_path,
                             .meaning = "size of the file written last"},
    [METRIC_BUNDLE_WRITTEN] = {"bundle_written", METRIC_COUNTER, METRIC_PUBLISHERS,
                               by_role_and_path, .meaning = "times that the file was written"},
    [METRIC_BUNDLE_FAILED] = {"bundle_failed", METRIC_COUNTER, METRIC_PUBLISHERS, by_role_and_path,
                              .meaning = "deliveries that failed"},
};
