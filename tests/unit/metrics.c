/* What the host's telemetry is told, and how often; and that docs/metrics.md has the table as it
 * is. With --markdown the program prints the rows instead. */
#include "plugin/report/metrics.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hsm/base/clock.h"
#include "hsm/base/scope.h"
#include "tests/support/source_text.h"

enum { PAGE_MAX = 1 << 16, WORDS_MAX = 30 };

/* ---- the table ---- */

static void must_be_a_name(const char *name)
{
    assert_in_range(strlen(name), 1, 31);
    for (; *name; name++)
        assert_true(islower((unsigned char)*name) || *name == '_');
}

static size_t words(const char *text)
{
    size_t count = 1;

    for (; *text; text++)
        count += *text == ' ';
    return count;
}

static void every_row_has_names_that_a_scrape_survives(void **state)
{
    (void)state;
    for (size_t i = 0; i < METRICS; i++) {
        const struct metric_row *row = &metric_table[i];

        must_be_a_name(row->name);
        for (size_t label = 0; label < METRIC_LABELS; label++)
            if (row->labels[label].name)
                must_be_a_name(row->labels[label].name);
        assert_in_range(words(row->meaning), 2, WORDS_MAX);
        for (size_t other = 0; other < i; other++)
            assert_string_not_equal(row->name, metric_table[other].name);
    }
}

static void print_labels(const struct metric_row *row, FILE *out)
{
    for (size_t i = 0; i < METRIC_LABELS && row->labels[i].name; i++) {
        (void)fprintf(out, "%s`%s`", i > 0 ? ", " : "", row->labels[i].name);
        if (row->labels[i].values)
            (void)fprintf(out, " (%s)", row->labels[i].values);
    }
}

static void print_row(const struct metric_row *row, FILE *out)
{
    (void)fprintf(out, "| `pkcs11_%s` | %s | ", row->name, metric_kind_name(row->kind));
    print_labels(row, out);
    (void)fprintf(out, " | %s |\n", row->meaning);
}

static char *markdown(void)
{
    char *text;
    size_t size;
    FILE *out = open_memstream(&text, &size);

    assert_non_null(out);
    for (size_t i = 0; i < METRICS; i++)
        print_row(&metric_table[i], out);
    assert_int_equal(fclose(out), 0);
    return text;
}

static void the_page_has_the_table_as_it_is(void **state)
{
    OWNED(scope_free) char *page = calloc(1, PAGE_MAX);
    OWNED(scope_free) char *table = markdown();
    const char *rows;

    (void)state;
    go_home("README.md");
    assert_non_null(page);
    append_file("docs/metrics.md", page, PAGE_MAX);
    rows = strstr(page, "\n| `pkcs11_");
    if (!rows || strncmp(rows + 1, table, strlen(table)) != 0 ||
        strncmp(rows + 1 + strlen(table), "| `pkcs11_", 10) == 0)
        fail_msg("docs/metrics.md must have these rows, as unit/metrics --markdown prints "
                 "them:\n%s",
                 table);
}

/* ---- telling ---- */

/* Hears all there is to tell, or refuses it; what is told of the metric and its first label is
 * added up in *sum. Returns how many series that was. */
static unsigned told(enum metric metric, const char *first, bool hears, double *sum)
{
    struct metric_news news;
    size_t series = 0;
    unsigned count = 0;

    *sum = 0;
    while (metrics_next(&series, &news)) {
        if (hears)
            metrics_told(&news);
        if (news.metric != metric || strcmp(news.labels[0], first) != 0)
            continue;
        *sum += (double)news.value;
        count++;
    }
    return count;
}

static void what_an_alarm_counts_on_is_told_as_0_before_it_happens(void **state)
{
    double sum;

    (void)state;
    metrics_open(METRIC_KEYMANAGERS);
    assert_int_equal(told(METRIC_WORKER_ENDED, "hung", true, &sum), 1);
    assert_true(sum == 0);
    assert_int_equal(told(METRIC_WORKER_ENDED, "hung", true, &sum), 0);
    metrics_open(METRIC_KEYMANAGERS);
    assert_int_equal(told(METRIC_CALLS, "sign", true, &sum), 0);
    metrics_count(METRIC_WORKER_ENDED, "hung", NULL, 1);
    assert_int_equal(told(METRIC_WORKER_ENDED, "hung", true, &sum), 1);
    assert_true(sum == 1);
}

static void a_count_that_the_host_did_not_hear_is_told_again(void **state)
{
    double sum;

    (void)state;
    metrics_count(METRIC_KEY_MADE, NULL, NULL, 2);
    assert_int_equal(told(METRIC_KEY_MADE, "", false, &sum), 1);
    assert_true(sum == 2);
    metrics_count(METRIC_KEY_MADE, NULL, NULL, 1);
    assert_int_equal(told(METRIC_KEY_MADE, "", true, &sum), 1);
    assert_true(sum == 3);
    assert_int_equal(told(METRIC_KEY_MADE, "", true, &sum), 0);
}

static void what_is_counted_while_the_host_answers_is_not_lost(void **state)
{
    struct metric_news news;
    size_t series = 0;
    double sum;

    (void)state;
    metrics_count(METRIC_PIN_REFUSED, NULL, NULL, 1);
    while (metrics_next(&series, &news) && news.metric != METRIC_PIN_REFUSED)
        metrics_told(&news);
    metrics_count(METRIC_PIN_REFUSED, NULL, NULL, 4);
    metrics_told(&news);
    assert_int_equal(told(METRIC_PIN_REFUSED, "", true, &sum), 1);
    assert_true(sum == 4);
}

static void of_a_gauge_the_latest_is_told_and_of_a_sample_the_greatest(void **state)
{
    double sum;

    (void)state;
    metrics_set(METRIC_TOKEN_UP, NULL, NULL, 2);
    metrics_set(METRIC_TOKEN_UP, NULL, NULL, 1);
    metrics_took("sign", "all", 5 * CLOCK_MILLISECOND);
    metrics_took("sign", "all", 2 * CLOCK_MILLISECOND);
    assert_int_equal(told(METRIC_TOKEN_UP, "", false, &sum), 1);
    assert_true(sum == 1);
    assert_int_equal(told(METRIC_CALL_SLOWEST, "sign", false, &sum), 1);
    assert_true(sum == 5);
    assert_int_equal(told(METRIC_CALL_TIME, "sign", true, &sum), 1);
    assert_true(sum == 7);
    metrics_took("sign", "all", 2 * CLOCK_MILLISECOND);
    assert_int_equal(told(METRIC_CALL_SLOWEST, "sign", true, &sum), 1);
    assert_true(sum == 2);
}

static void a_label_that_is_too_long_or_no_text_is_one_series(void **state)
{
    char longest[METRIC_LABEL_MAX + 8];
    double sum;

    (void)state;
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    for (unsigned i = 0; i < 2; i++) {
        metrics_count(METRIC_SIGNATURES, longest, "OK", 1);
        metrics_count(METRIC_SIGNATURES, "half \xc3", "OK", 1);
    }
    assert_int_equal(told(METRIC_SIGNATURES, "half ?", false, &sum), 1);
    assert_true(sum == 2);
    longest[METRIC_LABEL_MAX - 1] = '\0';
    assert_int_equal(told(METRIC_SIGNATURES, longest, true, &sum), 1);
    assert_true(sum == 2);
}

static void more_series_than_there_is_room_for_harm_no_other(void **state)
{
    char key_id[16];
    double sum;

    (void)state;
    for (unsigned i = 0; i < 2 * METRIC_SERIES_MAX; i++) {
        (void)snprintf(key_id, sizeof key_id, "key-%u", i);
        metrics_count(METRIC_SIGNATURES, key_id, "OK", 1);
    }
    metrics_count(METRIC_KEY_MADE, NULL, NULL, 1);
    assert_int_equal(told(METRIC_KEY_MADE, "", true, &sum), 1);
    assert_true(sum == 1);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_row_has_names_that_a_scrape_survives),
        cmocka_unit_test(the_page_has_the_table_as_it_is),
        cmocka_unit_test(what_an_alarm_counts_on_is_told_as_0_before_it_happens),
        cmocka_unit_test(a_count_that_the_host_did_not_hear_is_told_again),
        cmocka_unit_test(what_is_counted_while_the_host_answers_is_not_lost),
        cmocka_unit_test(of_a_gauge_the_latest_is_told_and_of_a_sample_the_greatest),
        cmocka_unit_test(a_label_that_is_too_long_or_no_text_is_one_series),
        cmocka_unit_test(more_series_than_there_is_room_for_harm_no_other),
    };

    if (argc > 1 && strcmp(argv[1], "--markdown") == 0) {
        OWNED(scope_free) char *table = markdown();

        return fputs(table, stdout) < 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
