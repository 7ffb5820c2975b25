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
                          .meaning = "counts up every 5 s while the plugin lives; when it ends, "
                                     "all other figures keep their last values"},
    [METRIC_TOKEN_UP] = {"token_up", METRIC_GAUGE, METRIC_KEYMANAGERS, by_nothing,
                         .meaning = "1 while a worker has the token open, else 0"},
    [METRIC_TOKEN_AWAY] = {"token_away_seconds", METRIC_GAUGE, METRIC_KEYMANAGERS, by_nothing,
                           .meaning =
                               "time for which no worker has had the token open; 0 while one has"},
    [METRIC_TOKEN_SILENT] = {"token_silent_seconds", METRIC_GAUGE, METRIC_KEYMANAGERS, by_nothing,
                             .meaning = "time since the token last did what it was asked to; an "
                                        "idle token is asked every keep_alive"},
    [METRIC_SIGNATURES] =
        {"signatures", METRIC_COUNTER, METRIC_KEYMANAGERS, by_key_and_code,
         .meaning =
             "answered SignData calls, by gRPC code; key_id is empty if no such key is served"},
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
                      .meaning = "successful calls that have the part: all of the call, the wait "
                                 "for a session (with failed tries), the worker and the token"},
    [METRIC_CALL_TIME] = {"call_milliseconds", METRIC_COUNTER, METRIC_KEYMANAGERS, by_call_and_part,
                          .meaning =
                              "time that these calls took; divided by calls it is the mean. Wait "
                              "and token are parts of all; the rest is the plugin itself"},
    [METRIC_CALL_SLOWEST] = {"call_elapsed_time", METRIC_SAMPLE, METRIC_KEYMANAGERS,
                             by_call_and_part,
                             .meaning = "milliseconds of the slowest call of each second"},
    [METRIC_QUEUE_LENGTH] = {"queue_length", METRIC_GAUGE, METRIC_KEYMANAGERS, by_nothing,
                             .meaning = "requests to the token that wait for a session"},
    [METRIC_QUEUE_WAIT] = {"queue_wait_seconds", METRIC_GAUGE, METRIC_KEYMANAGERS, by_nothing,
                           .meaning = "how long the oldest of these requests has waited"},
    [METRIC_SESSIONS_BUSY] = {"sessions_busy", METRIC_GAUGE, METRIC_KEYMANAGERS, by_nothing,
                              .meaning = "sessions at work at this moment"},
    [METRIC_SESSIONS_LIMIT] =
        {"sessions_limit", METRIC_GAUGE, METRIC_KEYMANAGERS, by_nothing,
         .meaning = "number of sessions: max_sessions, or fewer if the token has fewer"},
    [METRIC_ASKED_AGAIN] = {"asked_again", METRIC_COUNTER, METRIC_KEYMANAGERS, by_after,
                            .meaning = "requests that were repeated so that no call fails: after a "
                                       "fault of the token, or the end of a worker"},
    [METRIC_WORKER_ENDED] =
        {"worker_ended", METRIC_COUNTER, METRIC_KEYMANAGERS, by_how,
         .meaning = "workers that were replaced: died by themselves, ended because they hung, "
                    "replaced by a fresh one, or refused as the token could not be opened"},
    [METRIC_PIN_REFUSED] =
        {"pin_refused", METRIC_COUNTER, METRIC_KEYMANAGERS, by_nothing,
         .meaning =
             "workers whose PIN was refused; no worker tries it again until its source changes"},
    [METRIC_KEYS] =
        {"keys", METRIC_GAUGE, METRIC_KEYMANAGERS, by_state,
         .meaning = "keys in the record, by state; previous: still served from the block previous"},
    [METRIC_KEY_AGE] = {"key_age_seconds", METRIC_GAUGE, METRIC_KEYMANAGERS, by_key,
                        .meaning = "time since the served key of this id was made"},
    [METRIC_OBJECTS] = {"objects", METRIC_GAUGE, METRIC_KEYMANAGERS, by_whose,
                        .meaning = "private keys on the token at the last count, after the start "
                                   "or hourly: of this trust domain, and all others"},
    [METRIC_BUNDLE_AGE] = {"bundle_age_seconds", METRIC_GAUGE, METRIC_PUBLISHERS, by_role_and_path,
                           .meaning = "time since the last delivery of the bundle that did not "
                                      "fail, changed or not; SPIRE delivers every 30 s"},
    [METRIC_BUNDLE_SEQUENCE] = {"bundle_sequence_number", METRIC_GAUGE, METRIC_PUBLISHERS,
                                by_role_and_path,
                                .meaning = "sequence number of the bundle delivered last"},
    [METRIC_BUNDLE_BYTES] = {"bundle_bytes", METRIC_GAUGE, METRIC_PUBLISHERS, by_role_and_path,
                             .meaning = "size of the file written last"},
    [METRIC_BUNDLE_WRITTEN] = {"bundle_written", METRIC_COUNTER, METRIC_PUBLISHERS,
                               by_role_and_path, .meaning = "how often the file was written"},
    [METRIC_BUNDLE_FAILED] = {"bundle_failed", METRIC_COUNTER, METRIC_PUBLISHERS, by_role_and_path,
                              .meaning = "deliveries that failed"},
};
