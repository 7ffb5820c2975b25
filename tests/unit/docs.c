/* docs/operating.md lists what the log says: every text it quotes is in the sources, and every
 * message that the sources log is in the list. (The option tables are unit/config.c's.) */
#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hsm/base/scope.h"
#include "tests/support/source_text.h"

enum { PAGE_MAX = 1 << 16, QUOTES_MAX = 400, TEXT_MAX = 512 };

static const char heading[] = "\n## What to do when\n";
static const char of_another[] = "(SPIRE's own)"; /* behind a text that is not ours */

/* Without the blanks around it: they may stand in another string than the words. */
static const char *trim(char *part)
{
    size_t length;

    part += strspn(part, " ");
    length = strlen(part);
    while (length > 0 && part[length - 1] == ' ')
        part[--length] = '\0';
    return part;
}

/* Three dots in a quotation stand for what differs from case to case. */
static void must_be_said(const char *source, const char *quote)
{
    char text[256];
    char *rest = text;
    char *part;

    assert_in_range(snprintf(text, sizeof text, "%s", quote), 1, sizeof text - 1);
    while ((part = rest) != NULL) {
        rest = strstr(part, "...");
        if (rest) {
            *rest = '\0';
            rest += 3;
        }
        if (!strstr(source, trim(part)))
            fail_msg("docs/operating.md has the log say '%s', but no source has '%s'", quote, part);
    }
}

/* ---- the page ---- */

struct page {
    char *quotes[QUOTES_MAX]; /* what the rows have between backticks, in the first column */
    size_t count;
    char text[PAGE_MAX];
};

static void take_row(struct page *page, char *row)
{
    char *end = strchr(row + 1, '|');
    char *mark = row;

    assert_non_null(end);
    *end = '\0';
    if (strstr(row, of_another))
        return;
    while ((mark = strchr(mark, '`')) != NULL) {
        char *close = strchr(mark + 1, '`');

        assert_non_null(close);
        *close = '\0';
        assert_in_range(page->count, 0, QUOTES_MAX - 1);
        page->quotes[page->count++] = mark + 1;
        mark = close + 1;
    }
}

static struct page *read_page(void)
{
    struct page *page = calloc(1, sizeof *page);
    char *rest;
    char *line;

    go_home("README.md");
    assert_non_null(page);
    append_file("docs/operating.md", page->text, PAGE_MAX);
    rest = strstr(page->text, heading);
    assert_non_null(rest);
    rest += strlen(heading);
    while ((line = strsep(&rest, "\n")) != NULL && strncmp(line, "## ", 3) != 0)
        if (line[0] == '|')
            take_row(page, line);
    return page;
}

static void every_text_that_the_page_quotes_is_in_the_sources(void **state)
{
    OWNED(scope_free) struct page *page = read_page();
    OWNED(scope_free) char *source = read_sources();

    (void)state;
    for (size_t i = 0; i < page->count; i++)
        must_be_said(source, page->quotes[i]);
    assert_in_range(page->count, 15, QUOTES_MAX);
}

/* ---- the log ---- */

/* The functions that log, and those that log a message of their caller's. */
static const struct {
    const char *name;
    unsigned message; /* which argument, from 0 */
} loggers[] = {
    {"log_write", 1},    {"log_fault", 2},  {"keymanager_log_event", 1},
    {"log_disposal", 3}, {"log_places", 2},
};

struct messages {
    const char *source;
    struct {
        char text[TEXT_MAX];
    } all[QUOTES_MAX];
    size_t count;
};

static const char *after_string(const char *at)
{
    for (at++; *at != '"' && *at != '\0'; at++)
        if (*at == '\\')
            at++;
    assert_true(*at == '"');
    return at + 1;
}

/* Where the argument at `at` ends: at a comma of its own call, or that call's bracket. */
static const char *end_of_argument(const char *at)
{
    int depth = 0;

    for (; *at != '\0' && (depth > 0 || !strchr(",)", *at)); at++) {
        if (*at == '"')
            at = after_string(at) - 1;
        depth += strchr("([", *at) != NULL;
        depth -= strchr(")]", *at) != NULL;
    }
    return at;
}

static void take_argument(const char *at, unsigned which, char text[TEXT_MAX])
{
    const char *end = end_of_argument(at);

    for (; which > 0; which--) {
        if (*end != ',')
            fail_msg("no argument behind '%.60s'", at);
        at = end + 1;
        end = end_of_argument(at);
    }
    at += strspn(at, " \n");
    assert_in_range(end - at, 1, TEXT_MAX - 1);
    memcpy(text, at, (size_t)(end - at));
    text[end - at] = '\0';
}

static void take_strings(struct messages *messages, const char *text)
{
    while ((text = strchr(text, '"')) != NULL) {
        const char *end = after_string(text);

        assert_in_range(end - text, 3, TEXT_MAX - 1);
        assert_in_range(messages->count, 0, QUOTES_MAX - 1);
        memcpy(messages->all[messages->count++].text, text + 1, (size_t)(end - text) - 2);
        text = end;
    }
}

/* The strings of the table from which `argument` takes one: "events[kind]". */
static void take_table(struct messages *messages, const char *argument)
{
    char opening[TEXT_MAX];
    char *copy;
    char *table;

    assert_in_range(snprintf(opening, sizeof opening, "*const %.*s[] = {",
                             (int)strcspn(argument, "["), argument),
                    1, sizeof opening - 1);
    table = strstr(messages->source, opening);
    assert_non_null(table);
    copy = strndup(table, strcspn(table, ";"));
    assert_non_null(copy);
    take_strings(messages, copy);
    free(copy);
}

/* Is the function around `at` in the table? Its head ends where its body begins. */
static bool in_logger(const char *source, const char *at)
{
    const char *body = at;
    const char *head;

    while (body > source && strncmp(body, "\n{\n", 3) != 0)
        body--;
    for (head = body; head > source && strncmp(head, "\n\n", 2) != 0;)
        head--;
    for (size_t i = 0; i < sizeof loggers / sizeof *loggers; i++) {
        const char *name = strstr(head, loggers[i].name);

        if (name && name < body && name[strlen(loggers[i].name)] == '(')
            return true;
    }
    return false;
}

static void take_call(struct messages *messages, const char *arguments, unsigned message)
{
    char level[TEXT_MAX];
    char text[TEXT_MAX];

    take_argument(arguments, 0, level);
    take_argument(arguments, message, text);
    if (strcmp(level, "LOG_DEBUG") == 0 || strncmp(text, "const char *", 12) == 0)
        return;
    if (strchr(text, '"'))
        take_strings(messages, text);
    else if (strchr(text, '['))
        take_table(messages, text);
    else if (!in_logger(messages->source, arguments))
        fail_msg("'%s' is logged as a message of another function: add it to loggers[]", text);
}

static struct messages *read_messages(const char *source)
{
    struct messages *messages = calloc(1, sizeof *messages);

    assert_non_null(messages);
    messages->source = source;
    for (size_t i = 0; i < sizeof loggers / sizeof *loggers; i++) {
        size_t length = strlen(loggers[i].name);

        for (const char *at = source; (at = strstr(at, loggers[i].name)) != NULL; at += length)
            if (at[length] == '(' && !isalnum((unsigned char)at[-1]) && at[-1] != '_')
                take_call(messages, at + length + 1, loggers[i].message);
    }
    return messages;
}

/* The beginning is enough, unless it is another message whole. */
static bool is_listed(const struct page *page, const struct messages *messages, const char *text)
{
    for (size_t i = 0; i < page->count; i++) {
        const char *quote = page->quotes[i];
        bool other = strncmp(text, quote, strlen(quote)) != 0;

        for (size_t j = 0; j < messages->count && !other; j++)
            other = strcmp(messages->all[j].text, quote) == 0 && strcmp(text, quote) != 0;
        if (!other)
            return true;
    }
    return false;
}

static void every_message_of_the_log_is_in_the_list(void **state)
{
    OWNED(scope_free) struct page *page = read_page();
    OWNED(scope_free) char *source = read_sources();
    OWNED(scope_free) struct messages *messages = read_messages(source);
    size_t absent = 0;

    (void)state;
    for (size_t i = 0; i < messages->count; i++)
        if (!is_listed(page, messages, messages->all[i].text)) {
            print_message("docs/operating.md does not list '%s'\n", messages->all[i].text);
            absent++;
        }
    assert_int_equal(absent, 0);
    assert_in_range(messages->count, 40, QUOTES_MAX);
    print_message("%zu messages of the log are in docs/operating.md\n", messages->count);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_text_that_the_page_quotes_is_in_the_sources),
        cmocka_unit_test(every_message_of_the_log_is_in_the_list),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
