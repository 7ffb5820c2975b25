# What failed in a test's output, by name, and up to three lines of why. For tests/run, which gives
# `suite` and the outputs: the test's own, what it wrote to stderr, sanitizers' reports.

function tell(test, why,    lines, count, i) {
    if (test in told)
        return
    told[test] = 1
    print "failed: " suite ": " substr(test, 1, 130)
    count = split(why, lines, "\n")
    for (i = count > 3 ? count - 2 : 1; i <= count; i++)
        print "    " substr(lines[i], 1, 156)
}

function joined(text, line) {
    return text == "" ? line : text "\n" line
}

# Go says to which test its lines belong; of those it names, the log of a plugin is no reason.
/^=== (RUN|NAME|CONT)/ { current = $3; sub(/\/.*/, "", current) }
/^ +[a-z0-9_]+_test\.go:[0-9]+: / && !/log:$/ { sub(/^ +/, ""); said[current] = joined(said[current], $0) }
/^--- FAIL: / { tell($3, said[$3]) }
/^\tTest[^ ]* \([0-9.hms]+\)$/ { tell($1, "it was still running when the time was up") }
/^panic: / { tell("a panic", $0) }

# cmocka gives reasons one after the other, and names in the same order at its end.
/^\[ RUN      \]/ { current = $4 }
/^\[ +(OK|FAILED|SKIPPED) +\]/ { current = "" }
/^ERROR: |^\[  ERROR   \]|^\[   LINE   \]/ {
    ends = /\[   LINE   \]/
    gsub(/\[  (ERROR  | LINE  ) \] --- /, "")
    reason = joined(reason, $0)
    if (ends) {
        reasons[++failures] = reason
        reason = ""
    }
}
/^\[  FAILED  \] [a-z0-9_]+$/ && FILENAME ~ /\.err$/ { tell($4, reasons[++names]) }

# A check of a script.
/^  FAIL  / { tell(substr($0, 9), "") }

/(ERROR: (Address|Leak)Sanitizer|WARNING: ThreadSanitizer|runtime error): / { tell("a sanitizer's report", $0) }

/[^ \t]/ { last = $0 }
END {
    for (test in told)
        exit
    tell(current == "" ? "all of it" : current, last)
}
