// Package softhsm makes SoftHSM tokens for tests: each in a directory of its own, found
// through an environment of its own, gone after the test.
package softhsm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Module is SoftHSM's library on Debian; $SOFTHSM2_MODULE overrides it.
func Module() string {
	if path := os.Getenv("SOFTHSM2_MODULE"); path != "" {
		return path
	}
	return "/usr/lib/softhsm/libsofthsm2.so"
}

// Token is one initialised token and the files around it.
type Token struct {
	Dir     string // for whatever a test wants to keep beside it
	Tokens  string // SoftHSM's token directory
	Conf    string
	Label   string
	PIN     string
	PINFile string
}

// New makes a token with the label "spire" and PIN 1234, its PIN in a 0600 file.
func New(t testing.TB) *Token {
	t.Helper()
	token := empty(t)
	token.Init(t, token.Label)
	return token
}

// Restore is New with the contents of a token directory that was kept.
func Restore(t testing.TB, tokens string) *Token {
	t.Helper()
	token := empty(t)
	if err := os.CopyFS(token.Tokens, os.DirFS(tokens)); err != nil {
		t.Fatal(err)
	}
	return token
}

func empty(t testing.TB) *Token {
	t.Helper()
	dir := t.TempDir()
	token := &Token{
		Dir: dir, Tokens: filepath.Join(dir, "tokens"), Conf: filepath.Join(dir, "softhsm2.conf"),
		Label: "spire", PIN: "1234", PINFile: filepath.Join(dir, "pin"),
	}
	if err := os.Mkdir(token.Tokens, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, token.Conf, fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n", token.Tokens))
	write(t, token.PINFile, token.PIN+"\n")
	return token
}

// Init makes one more token of this label in the same directory.
func (token *Token) Init(t testing.TB, label string) {
	t.Helper()
	token.Run(t, "softhsm2-util", "--module", Module(), "--init-token", "--free", "--label", label,
		"--pin", token.PIN, "--so-pin", "5678")
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Env for the processes that are to see this token.
func (token *Token) Env() []string {
	return []string{"SOFTHSM2_CONF=" + token.Conf}
}

// Run a command that sees this token; its output, or the end of the test.
func (token *Token) Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), token.Env()...)
	output, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, output)
	}
	return string(output)
}

// Tool runs pkcs11-tool (OpenSC), logged in.
func (token *Token) Tool(t testing.TB, args ...string) string {
	t.Helper()
	return token.Run(t, "pkcs11-tool", append([]string{
		"--module", Module(), "--token-label", token.Label, "--login", "--pin", token.PIN}, args...)...)
}

// Labels of the private keys on the token, in pkcs11-tool's order.
func (token *Token) Labels(t testing.TB) []string {
	t.Helper()
	var labels []string
	for _, line := range strings.Split(token.Tool(t, "--list-objects", "--type", "privkey"), "\n") {
		if label, found := strings.CutPrefix(strings.TrimSpace(line), "label:"); found {
			labels = append(labels, strings.TrimSpace(label))
		}
	}
	return labels
}

// PluginData for a KeyManager on this token, with more options behind. What a start finds
// superseded goes at once: nobody waits a day here.
func (token *Token) PluginData(more string) string {
	return fmt.Sprintf("module = %q\ntoken = %q\npin_file = %q\nkey_identifier_file = %q\ndestroy_superseded_after = 0\n%s",
		Module(), "pkcs11:token="+token.Label, token.PINFile, filepath.Join(token.Dir, "hsm-id"), more)
}
