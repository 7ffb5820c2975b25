/* No sentence that an operator or a contributor reads has more than 30 words: in the documents, in
 * option help, in --help, in log lines and errors. */
#include <ctype.h>
#include <glob.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hsm/base/scope.h"
#include "tests/support/source_text.h"

enum { PAGE_MAX = 1 << 18, LITERAL_MAX = 1 << 13, WORDS_MAX = 30, SHOWN = 60 };

/* Reads text word by word. A sentence ends at a full stop, and where a paragraph, an item of a
 * list or a cell of a table does. */
struct reader {
    const char *where;
    const char *begin; /* of the sentence */
    size_t words;
    size_t sentences;
    size_t too_long;
};

static void end_sentence(struct reader *reader)
{
    if (reader->words > WORDS_MAX) {
        print_message("%s: a sentence of %zu words: %.*s ...\n", reader->where, reader->words,
                      SHOWN, reader->begin);
        reader->too_long++;
    }
    reader->sentences += reader->words > 0;
    reader->words = 0;
}

static const char *end_of_line(const char *line)
{
    return line + strcspn(line, "\n");
}

static const char *end_of_paragraph(const char *text)
{
    const char *end = strstr(text, "\n\n");

    return end ? end : text + strlen(text);
}

/* A link's target and what is between backticks count as part of one word. */
static const char *end_of_word(const char *at)
{
    for (; *at != '\0' && !isspace((unsigned char)*at); at++) {
        const char *close = NULL;

        if (*at == '`')
            close = memchr(at + 1, '`', (size_t)(end_of_paragraph(at + 1) - at - 1));
        else if (strncmp(at, "](", 2) == 0)
            close = strchr(at, ')');
        if (close)
            at = close;
    }
    return at;
}

static bool ends_sentence(const char *word, const char *end)
{
    while (end > word && strchr(")*\"'", end[-1]))
        end--;
    return end > word && strchr(".?!|", end[-1]);
}

static bool has_letter(const char *word, const char *end)
{
    while (word < end && !isalnum((unsigned char)*word))
        word++;
    return word < end;
}

/* Returns where it stopped: what is between backticks may go on in the next line. */
static const char *read_words(struct reader *reader, const char *line, const char *end)
{
    while (line < end) {
        const char *word = line + strspn(line, " ");
        const char *after = end_of_word(word);

        if (word >= end)
            break;
        if (reader->words == 0)
            reader->begin = word;
        reader->words += has_letter(word, after);
        if (ends_sentence(word, after) || strncmp(word, "\xe2\x86\x92", 3) == 0) /* an arrow */
            end_sentence(reader);
        line = after;
    }
    return line > end ? end_of_line(line) : end;
}

/* An item of a list, a heading, a row; in a program's help whatever is indented. */
static bool begins_anew(const char *line)
{
    const char *text = line + strspn(line, " ");
    size_t digits = strspn(text, "0123456789");

    return strchr("#|\n", *text) || strncmp(text, "- ", 2) == 0 ||
           (digits > 0 && text[digits] == '.');
}

/* ---- documents ---- */

static void read_page(struct reader *reader, const char *text)
{
    bool code = false; /* between fences */
    bool blank = true; /* the line before: then one indented by four is code */
    const char *end;

    for (const char *line = text; *line != '\0'; line = *end ? end + 1 : end) {
        end = end_of_line(line);
        if (strncmp(line + strspn(line, " "), "```", 3) == 0)
            code = !code;
        if (code || (blank && strncmp(line, "    ", 4) == 0))
            continue;
        blank = line == end;
        if (begins_anew(line))
            end_sentence(reader);
        end = read_words(reader, line, end);
    }
    end_sentence(reader);
}

static void no_sentence_of_the_documents_is_too_long(void **state)
{
    static const char *const places[] = {"*.md", "*/*.md", "examples/*/README.md"};
    OWNED(scope_free) char *text = calloc(1, PAGE_MAX);
    struct reader reader = {0};
    glob_t files = {0};

    (void)state;
    assert_non_null(text);
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        assert_int_equal(glob(places[i], i > 0 ? GLOB_APPEND : 0, NULL, &files), 0);
    for (size_t i = 0; i < files.gl_pathc; i++) {
        text[0] = '\0';
        append_file(files.gl_pathv[i], text, PAGE_MAX);
        reader.where = files.gl_pathv[i];
        read_page(&reader, text);
    }
    globfree(&files);
    print_message("%zu sentences of documents\n", reader.sentences);
    assert_int_equal(reader.too_long, 0);
    assert_in_range(reader.sentences, 500, 1 << 20);
}

/* ---- the programs' texts ---- */

static const char *skip_comment(const char *at)
{
    const char *end = at[1] == '/' ? end_of_line(at) : strstr(at + 2, "*/");

    assert_non_null(end);
    return *end == '*' ? end + 2 : end;
}

/* The next string of C's text, unescaped, and where it ends; NULL behind the last. */
static const char *next_string(const char *at, char literal[LITERAL_MAX])
{
    size_t length = 0;

    while (*at != '\0' && *at != '"')
        if (*at == '/' && (at[1] == '*' || at[1] == '/'))
            at = skip_comment(at);
        else
            at += *at == '\'' ? (at[1] == '\\' ? 4 : 3) : 1;
    if (*at == '\0')
        return NULL;
    for (at++; *at != '"'; at++) {
        assert_in_range(length, 0, LITERAL_MAX - 2);
        if (*at == '\\')
            at++;
        literal[length++] = at[-1] == '\\' && *at == 'n' ? '\n' : *at;
    }
    literal[length] = '\0';
    return at + 1;
}

static void read_literal(struct reader *reader, const char *text)
{
    const char *end;

    for (const char *line = text; *line != '\0'; line = *end ? end + 1 : end) {
        end = end_of_line(line);
        if (*line == ' ' || begins_anew(line))
            end_sentence(reader);
        end = read_words(reader, line, end);
    }
    end_sentence(reader);
}

static void no_sentence_of_the_programs_is_too_long(void **state)
{
    OWNED(scope_free) char *source = NULL;
    char literal[LITERAL_MAX];
    struct reader reader = {.where = "hsm/, plugin/"};

    (void)state;
    source = read_sources();
    for (const char *at = source; (at = next_string(at, literal)) != NULL;)
        read_literal(&reader, literal);
    print_message("%zu sentences of programs\n", reader.sentences);
    assert_int_equal(reader.too_long, 0);
    assert_in_range(reader.sentences, 1000, 1 << 20);
}

static int find_the_files(void **state)
{
    (void)state;
    go_home("README.md");
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_sentence_of_the_documents_is_too_long),
        cmocka_unit_test(no_sentence_of_the_programs_is_too_long),
    };

    return cmocka_run_group_tests(tests, find_the_files, NULL);
}
