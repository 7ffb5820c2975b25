/* What hashicorp/hcl v1 makes of the same texts is asked in peers/hcl; here stands what we
 * promise beyond that. */
#include "plugin/config/hcl.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "hsm/base/scope.h"

static struct hcl *parse(const char *text)
{
    struct hcl *tree = NULL;
    struct fault fault;

    if (hcl_parse(text, strlen(text), &tree, &fault) != 0)
        fail_msg("refused: %s", fault.message);
    return tree;
}

static void refused(const char *text, size_t length, const char *message)
{
    struct hcl *tree = NULL;
    struct fault fault = {0};

    if (hcl_parse(text, length, &tree, &fault) == 0)
        fail_msg("accepted: %s", text);
    assert_null(tree);
    assert_int_equal(fault.code, FAULT_INVALID_ARGUMENT);
    assert_string_equal(fault.message, message);
}

static const struct hcl_item *find(const struct hcl *tree, const char *key)
{
    const struct hcl_item *root = hcl_root(tree);

    for (size_t i = 0; i < root->count; i++)
        if (strcmp(root->items[i].key, key) == 0)
            return &root->items[i];
    fail_msg("no %s", key);
    return NULL;
}

static void is_text(const struct hcl_item *item, const char *text)
{
    assert_int_equal(item->kind, HCL_STRING);
    assert_string_equal(item->text, text);
    assert_int_equal(item->length, strlen(text));
}

/* As spire-server 1.13 and 1.14 print it: no braces, no line end behind the last item. */
static void plugin_data_as_spire_delivers_it_is_read(void **state)
{
    OWNED(hcl_scope_free)
    struct hcl *tree = parse("# a hash comment\n"
                             "module = \"libsofthsm2.so\" /* inline */\n"
                             "\n"
                             "pin = \"12\\\"34\\\\56\\n\\t\\u00e9\" # tail\n"
                             "\n"
                             "hex = 0x1F\n"
                             "\n"
                             "list = [\n  \"a\",\n  2,\n]\n"
                             "\n"
                             "nested \"label\" {\n  x = 1\n}\n"
                             "\n"
                             "\"quoted key\" = true");
    const struct hcl_item *list;

    (void)state;
    is_text(find(tree, "module"), "libsofthsm2.so");
    is_text(find(tree, "pin"), "12\"34\\56\n\t\xc3\xa9");
    assert_int_equal(find(tree, "hex")->number, 31);
    assert_int_equal(find(tree, "hex")->line, 6);
    list = find(tree, "list");
    assert_int_equal(list->kind, HCL_LIST);
    assert_int_equal(list->count, 2);
    is_text(&list->items[0], "a");
    assert_int_equal(list->items[1].line, 10);
    assert_string_equal(find(tree, "nested")->label, "label");
    assert_int_equal(find(tree, "nested")->items[0].number, 1);
    assert_int_equal(find(tree, "quoted key")->kind, HCL_BOOL);
    assert_int_equal(find(tree, "quoted key")->line, 17);
}

static void a_list_may_hold_blocks(void **state)
{
    OWNED(hcl_scope_free)
    struct hcl *tree =
        parse("telemetry {\n  DogStatsd = [\n    { address = \"a:1\" },\n    {},\n  ]\n}\n"
              "mixed = [1, { x = [{ y = true }] } , \"z\"]\n");
    const struct hcl_item *list = &find(tree, "telemetry")->items[0];

    (void)state;
    assert_int_equal(list->kind, HCL_LIST);
    assert_int_equal(list->count, 2);
    assert_int_equal(list->items[0].kind, HCL_BLOCK);
    assert_int_equal(list->items[0].line, 3);
    assert_null(list->items[0].key);
    is_text(&list->items[0].items[0], "a:1");
    assert_int_equal(list->items[1].count, 0);
    list = find(tree, "mixed");
    assert_int_equal(list->count, 3);
    assert_int_equal(list->items[1].items[0].items[0].items[0].number, 1);
    is_text(&list->items[2], "z");
}

static void a_raw_file_with_windows_line_ends_is_read(void **state)
{
    OWNED(hcl_scope_free)
    struct hcl *tree = parse(
        "// by hand\r\nmodule = \"a\"\r\ntext = <<EOF\r\none\r\n two\r\nEOF\r\nlast = 0644\r\n");

    (void)state;
    is_text(find(tree, "module"), "a");
    is_text(find(tree, "text"), "one\n two\n");
    assert_int_equal(find(tree, "last")->number, 0644);
    assert_int_equal(find(tree, "last")->line, 7);
}

static void json_is_read_with_its_lines(void **state)
{
    OWNED(hcl_scope_free)
    struct hcl *tree = parse("\n{\n  \"a\": \"x\\u00e9\\n\",\n  \"b\": -1.5e3, \"c\": [1, "
                             "\"y\"],\n  \"d\": {\"e\": false}\n}\n");

    (void)state;
    is_text(find(tree, "a"), "x\xc3\xa9\n");
    assert_int_equal(find(tree, "a")->line, 3);
    assert_int_equal(find(tree, "b")->kind, HCL_FLOAT);
    assert_string_equal(find(tree, "b")->text, "-1.5e3");
    assert_int_equal(find(tree, "c")->count, 2);
    assert_int_equal(find(tree, "d")->line, 5);
    assert_int_equal(find(tree, "d")->items[0].kind, HCL_BOOL);
}

static void nothing_at_all_is_an_empty_block(void **state)
{
    static const char *const texts[] = {"", " \n", "# x", "{}", "/* x */\r\n"};

    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        OWNED(hcl_scope_free) struct hcl *tree = parse(texts[i]);

        assert_int_equal(hcl_root(tree)->kind, HCL_BLOCK);
        assert_int_equal(hcl_root(tree)->count, 0);
    }
}

static void repeated_keys_are_all_kept(void **state)
{
    OWNED(hcl_scope_free) struct hcl *hcl = parse("a = 1\na = 2");
    OWNED(hcl_scope_free) struct hcl *json = parse("{\"a\": 1, \"a\": 2}");

    (void)state;
    assert_int_equal(hcl_root(hcl)->count, 2);
    assert_int_equal(hcl_root(json)->count, 2);
    assert_int_equal(hcl_root(json)->items[1].number, 2);
}

static void what_is_refused_is_refused_with_its_line(void **state)
{
    static const struct {
        const char *text;
        const char *message;
    } rows[] = {
        {"a = 1\nb = \"${x}\"",
         "line 2: \"${\" is not supported: the plugin does not replace variables"},
        {"a = <<E\nx\n$${x}\nE\n",
         "line 3: \"${\" is not supported: the plugin does not replace variables"},
        {"{\n\"a\": \"${x}\"}",
         "line 2: \"${\" is not supported: the plugin does not replace variables"},
        {"a = 1\nb = 12monkeys", "line 2: this is not a number (put text in quotes)"},
        {"a = secret", "line 1: text must stand in quotes"},
        {"a = \"secret\n", "line 1: a string has no closing '\"'"},
        {"\n\nb {\n c = 1\n\n", "line 3: the block that begins here has no closing '}'"},
        {"\n{\n \"b\": {\n \"c\": 1\n\n", "line 3: the object that begins here has no closing '}'"},
        {"a = [[1]]", "line 1: expected a string, a number, true or false"},
        {"{\"a\": [{\"b\": 1}]}", "line 1: expected a string, a number, true or false"},
        {"\na = [\n{ b = 1 ", "line 3: the block that begins here has no closing '}'"},
        {"\na = [{}\n{}]", "line 3: expected ',' or ']' in a list"},
        {"a \"b\" \"c\" {}", "line 1: expected '{' after two names"},
        {"\"str\"", "line 1: expected '=' or '{'"},
        {"/*\n\n*/ a = 08", "line 3: an octal number (it begins with 0) has a digit 8 or 9"},
        {"{\"a\": null}", "line 1: text must stand in quotes"},
        {"{\"a\": 1}\n\nb", "line 3: unexpected text after the last '}'"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        refused(rows[i].text, strlen(rows[i].text), rows[i].message);
}

static void bytes_that_are_no_text_are_refused(void **state)
{
    (void)state;
    refused("a = 1\n# \xff", 9, "line 2: the text contains a byte that is not UTF-8");
    refused("a = \"\0\"", 7, "line 1: the text contains a byte that is not UTF-8");
    refused("a = 1\0", 6, "line 1: the text contains a byte that is not UTF-8");
    refused("a = \"\\xc3\"", 10, "line 1: the escapes in a string do not form UTF-8 text");
    refused("a = \"\\u0000\"", 12, "line 1: the escapes in a string do not form UTF-8 text");
}

static char *repeat(const char *piece, size_t count)
{
    size_t length = strlen(piece);
    char *text = malloc(length * count + 1);

    assert_non_null(text);
    for (size_t i = 0; i < count; i++)
        memcpy(text + i * length, piece, length);
    text[length * count] = '\0';
    return text;
}

static void a_text_without_end_is_refused(void **state)
{
    OWNED(scope_free) char *longest = repeat(" ", HCL_TEXT_MAX);
    OWNED(scope_free) char *too_long = repeat(" ", HCL_TEXT_MAX + 1);
    OWNED(scope_free) char *deep = repeat("a {", 100000 / 3);
    OWNED(scope_free) char *deep_list = repeat("a=[{", 100000 / 4);
    OWNED(scope_free) char *deep_json = repeat("{\"a\":", 50000);
    OWNED(scope_free) char *many = repeat("a=1 ", HCL_ITEMS_MAX + 1);
    OWNED(scope_free) char *list = repeat("1,", HCL_ITEMS_MAX + 8);

    (void)state;
    hcl_free(parse(longest));
    refused(too_long, strlen(too_long), "line 1: the text is longer than 256 KiB");
    refused(deep, strlen(deep), "line 1: blocks are nested too deeply");
    refused(deep_list, strlen(deep_list), "line 1: blocks are nested too deeply");
    refused(deep_json, strlen(deep_json), "line 1: objects are nested too deeply");
    refused(many, strlen(many), "line 1: there are too many values");
    memcpy(list, "a=[1", 4);
    refused(list, strlen(list), "line 1: there are too many values");
}

static void every_corpus_text_is_taken_or_refused_as_its_name_says(void **state)
{
    FILE *names = popen("ls tests/corpus/hcl/* corpus/hcl/* 2>/dev/null", "r");
    char path[512];
    unsigned count = 0;

    (void)state;
    assert_non_null(names);
    while (fscanf(names, "%511s", path) == 1) {
        static char text[HCL_TEXT_MAX];
        FILE *file = fopen(path, "rb");
        struct hcl *tree = NULL;
        struct fault fault;
        bool taken;

        assert_non_null(file);
        taken = hcl_parse(text, fread(text, 1, sizeof text, file), &tree, &fault) == 0;
        (void)fclose(file);
        hcl_free(tree);
        if (taken != (strncmp(strrchr(path, '/'), "/ok_", 4) == 0))
            fail_msg("%s was %s", path, taken ? "taken" : fault.message);
        count++;
    }
    (void)pclose(names);
    assert_true(count > 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plugin_data_as_spire_delivers_it_is_read),
        cmocka_unit_test(a_list_may_hold_blocks),
        cmocka_unit_test(a_raw_file_with_windows_line_ends_is_read),
        cmocka_unit_test(json_is_read_with_its_lines),
        cmocka_unit_test(nothing_at_all_is_an_empty_block),
        cmocka_unit_test(repeated_keys_are_all_kept),
        cmocka_unit_test(what_is_refused_is_refused_with_its_line),
        cmocka_unit_test(bytes_that_are_no_text_are_refused),
        cmocka_unit_test(a_text_without_end_is_refused),
        cmocka_unit_test(every_corpus_text_is_taken_or_refused_as_its_name_says),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
