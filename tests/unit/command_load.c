/* From how many sessions on do more bring little? */
#include "plugin/command/command_load.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>

#include <cmocka.h>

static void the_knee_is_the_first_within_a_tenth_of_the_best(void **state)
{
    static const struct {
        const char *what;
        double rates[5];
        size_t count;
        size_t knee;
    } rows[] = {
        {"a token that signs one at a time", {100, 101, 99, 100}, 4, 0},
        {"one that signs two at a time", {50, 99, 101, 100}, 4, 1},
        {"one that still rises", {50, 100, 200, 400}, 4, 3},
        {"one that more sessions slow down", {50, 100, 60, 20}, 4, 1},
        {"just within a tenth", {90.1, 100}, 2, 0},
        {"just outside", {89.9, 100}, 2, 1},
        {"one step alone", {7}, 1, 0},
        {"none", {0}, 0, 0},
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        print_message("the knee of %s\n", rows[i].what);
        assert_int_equal(load_knee(rows[i].rates, rows[i].count), rows[i].knee);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_knee_is_the_first_within_a_tenth_of_the_best),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
