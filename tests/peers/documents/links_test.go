// Package documents reads what the project says as its readers do.
package documents

import (
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode"
)

const top = "../../.."

var (
	fence   = regexp.MustCompile("^ *```")
	code    = regexp.MustCompile("`[^`]*`")
	heading = regexp.MustCompile(`^#{1,6} +(.*?) *#*$`)
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	text    = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`)
	option  = regexp.MustCompile("^\\| (`[a-z_]+`) \\|")
	mention = regexp.MustCompile(`\bdocs/[a-z]+\.(?:md|svg|png)(?:#[a-z0-9-]+)?`)
)

// files calls visit with each file of the source whose name ends with one of suffixes.
func files(t *testing.T, visit func(path string, lines []string), suffixes ...string) {
	t.Helper()
	err := filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if path != top && (entry.Name() == "build" || strings.HasPrefix(entry.Name(), ".")) {
				return fs.SkipDir
			}
			return nil
		}
		for _, suffix := range suffixes {
			if strings.HasSuffix(path, suffix) {
				visit(path, read(t, path))
				break
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) []string {
	t.Helper()
	bytes, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(bytes), "\n")
}

// prose is the lines that a Markdown reader sees as text: code is empty lines, so that numbers stay.
func prose(lines []string) []string {
	shown := make([]string, len(lines))
	inside := false
	for i, line := range lines {
		if fence.MatchString(line) {
			inside = !inside
		} else if !inside && !strings.HasPrefix(line, "    ") {
			shown[i] = line
		}
	}
	return shown
}

// anchor is how GitHub names a heading.
func anchor(heading string) string {
	var name strings.Builder
	for _, r := range strings.ToLower(text.ReplaceAllString(heading, "$1")) {
		switch {
		case r == ' ':
			name.WriteRune('-')
		case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
			name.WriteRune(r)
		}
	}
	return name.String()
}

func anchors(lines []string) map[string]bool {
	names := map[string]bool{}
	for _, line := range prose(lines) {
		found := heading.FindStringSubmatch(line)
		if found == nil {
			continue
		}
		name := anchor(found[1])
		for i := 1; names[name]; i++ {
			name = anchor(found[1]) + "-" + strconv.Itoa(i)
		}
		names[name] = true
	}
	return names
}

// wrong says what is wrong with a link in a file of folder; it is empty if it leads somewhere.
func wrong(t *testing.T, folder, path, target string) string {
	t.Helper()
	where, err := url.Parse(target)
	if err != nil {
		return err.Error()
	}
	if where.Scheme != "" {
		return ""
	}
	if where.Path != "" {
		path = filepath.Join(folder, where.Path)
	}
	if _, err := os.Stat(path); err != nil {
		return "there is no such file"
	}
	if where.Fragment != "" && !anchors(read(t, path))[where.Fragment] {
		return "there is no such heading"
	}
	return ""
}

func TestEveryLinkInADocumentLeadsToAFileAndAHeading(t *testing.T) {
	checked := 0
	files(t, func(path string, lines []string) {
		for i, line := range prose(lines) {
			for _, found := range link.FindAllStringSubmatch(code.ReplaceAllString(line, ""), -1) {
				checked++
				if what := wrong(t, filepath.Dir(path), path, found[1]); what != "" {
					t.Errorf("%s:%d: %s: %s", path, i+1, found[1], what)
				}
			}
		}
	}, ".md")
	if checked < 60 {
		t.Fatalf("only %d links were found", checked)
	}
}

func TestEveryPageThatCodeScriptsAndAlertsNameIsThere(t *testing.T) {
	checked := 0
	files(t, func(path string, lines []string) {
		for i, line := range lines {
			for _, target := range mention.FindAllString(line, -1) {
				checked++
				if what := wrong(t, top, path, target); what != "" {
					t.Errorf("%s:%d: %s: %s", path, i+1, target, what)
				}
			}
		}
	}, ".c", ".h", ".sh", ".yml", ".yaml", ".conf", ".json", ".md", ".go")
	if checked < 20 {
		t.Fatalf("only %d mentions were found", checked)
	}
}

func TestTheREADMEIsADoor(t *testing.T) {
	if lines := len(read(t, top+"/README.md")) - 1; lines > 120 {
		t.Errorf("README.md has %d lines, and 120 at most are wanted: the rest belongs into docs/", lines)
	}
}

// Whoever reads what a version brings finds each option's name there.
func TestTheChangelogNamesEveryOption(t *testing.T) {
	changelog := strings.Join(read(t, filepath.Join(top, "packaging/CHANGELOG.md")), "\n")
	options := 0
	for _, line := range read(t, filepath.Join(top, "docs/options.md")) {
		if found := option.FindStringSubmatch(line); found != nil {
			options++
			if !strings.Contains(changelog, found[1]) {
				t.Errorf("packaging/CHANGELOG.md does not name the option %s", found[1])
			}
		}
	}
	if options < 40 {
		t.Errorf("docs/options.md has %d options", options)
	}
}

// A release has an entry with its date; between releases the first one is what is to come.
func TestTheChangelogBeginsWithTheVersion(t *testing.T) {
	version, _, _ := strings.Cut(read(t, filepath.Join(top, "packaging/VERSION"))[0], " ")
	wanted := "## Unreleased"
	if !strings.Contains(version, "-dev") {
		wanted = "## " + version + " ("
	}
	for _, line := range read(t, filepath.Join(top, "packaging/CHANGELOG.md")) {
		if strings.HasPrefix(line, "## ") {
			if !strings.HasPrefix(line, wanted) {
				t.Errorf("packaging/VERSION says %s, and the changelog begins with %q", version, line)
			}
			return
		}
	}
	t.Error("the changelog has no entry")
}
