package commands_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"spire-hsm/peers/host"
)

var base32hex = base32.NewEncoding("0123456789abcdefghijklmnopqrstuv").WithPadding(base32.NoPadding)

func hash(kind, value string) string {
	sum := sha256.Sum256([]byte("spire-p11-1/" + kind + "\x00" + value))
	return base32hex.EncodeToString(sum[:5])
}

// now as a generation.
func now() int {
	return int(time.Since(time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)).Seconds())
}

// put a key on the token as the plugin would have made it at that time; its label.
func (s *scene) put(trustDomain, server string, generation int, id string) string {
	s.Helper()
	digits := []byte{}
	for shift := 25; shift >= 0; shift -= 5 {
		digits = append(digits, "0123456789abcdefghijklmnopqrstuv"[generation>>shift&31])
	}
	label := "sp1-" + hash("td", trustDomain) + hash("server", server) + "-" + string(digits) + "-" + id
	s.token.Tool(s, "--keypairgen", "--key-type", "EC:prime256v1", "--usage-sign", "--sensitive",
		"--label", label, "--id", fmt.Sprintf("%08x%024x", generation, len(s.token.Labels(s))))
	return label
}

// halve takes the private half away.
func (s *scene) halve(label string) {
	s.Helper()
	s.token.Tool(s, "--delete-object", "--type", "privkey", "--label", label)
}

// objects are the labels of all key objects.
func (s *scene) objects() []string {
	s.Helper()
	labels := s.token.Labels(s)
	for line := range strings.SplitSeq(s.token.Tool(s, "--list-objects", "--type", "pubkey"), "\n") {
		if label, found := strings.CutPrefix(strings.TrimSpace(line), "label:"); found {
			labels = append(labels, "public "+strings.TrimSpace(label))
		}
	}
	slices.Sort(labels)
	return labels
}

// lost are those of these labels that are not there any more; everything else must be.
func (s *scene) lost(before []string, labels ...string) {
	s.Helper()
	var expected []string
	for _, label := range before {
		if !slices.Contains(labels, strings.TrimPrefix(label, "public ")) {
			expected = append(expected, label)
		}
	}
	if after := s.objects(); !slices.Equal(after, expected) {
		s.Fatalf("on the token:\n%s\nexpected:\n%s", strings.Join(after, "\n"), strings.Join(expected, "\n"))
	}
}

// crowd is a token with keys of several servers and trust domains, and of somebody else.
type crowd struct {
	*scene
	identity         string
	superseded, half string
	dead, deadHalf   string
	before           []string
}

func newCrowd(t *testing.T) *crowd {
	c := &crowd{scene: newScene(t, "")}
	c.identity = filepath.Join(c.token.Dir, "hsm-id")
	c.write(c.identity, "server-a\n")
	c.superseded = c.put("example.org", "server-a", 1000, "A")
	c.put("example.org", "server-a", 2000, "A")
	c.put("example.org", "server-a", 1500, "B")
	c.half = c.put("example.org", "server-a", 3000, "C")
	c.halve(c.half)
	c.put("example.org", "server-a", 3500, "C")
	// perhaps the one that is served: a token may not show its private half just now
	c.halve(c.put("example.org", "server-a", 3600, "E"))
	// perhaps the one that is served: anybody may take a public half, and it can be put back
	bare := c.put("example.org", "server-a", 1600, "D")
	c.token.Tool(t, "--delete-object", "--type", "pubkey", "--label", bare)
	c.dead = c.put("example.org", "server-b", 1000, "A")
	c.deadHalf = c.put("example.org", "server-b", 1100, "A")
	c.halve(c.deadHalf)
	c.put("example.org", "server-c", 1000, "A")
	c.put("example.org", "server-c", now()-3600, "B") // alive
	c.put("example.com", "server-a", 1000, "A")
	c.put("example.com", "server-a", 2000, "A")
	c.token.Tool(t, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "somebody else's", "--id", "01")
	c.token.Tool(t, "--keypairgen", "--key-type", "EC:prime256v1", "--label",
		strings.Replace(c.superseded, "sp1-", "sp2-", 1), "--id", "02")
	c.before = c.objects()
	return c
}

func (c *crowd) prune(status int, args ...string) string {
	c.Helper()
	return c.command(status, "prune", args...)
}

func TestPruneTakesOurOwnLeftoversOnly(t *testing.T) {
	c := newCrowd(t)
	dry := c.prune(fine)
	c.contains(dry, c.superseded, c.half, "2 keys would be destroyed", "superseded", "half a key")
	c.lost(c.before)
	c.contains(c.prune(fine, "--yes"), "2 of 2 keys destroyed, and no longer found")
	c.lost(c.before, c.superseded, c.half)
	c.contains(c.prune(fine, "--yes"), "nothing to prune")
}

func TestPruneTakesServersThatAreLongGone(t *testing.T) {
	c := newCrowd(t)
	c.contains(c.prune(fine, "--other-servers"), c.dead, c.deadHalf, "2 keys would be destroyed", "other server")
	c.lost(c.before)
	c.contains(c.prune(fine, "--other-servers", "--older-than", "100000h"), "nothing to prune")
	c.prune(fine, "--other-servers", "--yes")
	c.lost(c.before, c.dead, c.deadHalf)
}

func TestPruneTakesTheServerThatIsNamed(t *testing.T) {
	c := newCrowd(t)
	c.contains(c.prune(fine, "--server-id", "server-c", "--yes"), "nothing to prune")
	c.contains(c.prune(fine, "--server-id", "server-x", "--yes"), "nothing to prune")
	c.lost(c.before)
	c.prune(fine, "--server-id", "server-b", "--yes")
	c.lost(c.before, c.dead, c.deadHalf)
	c.prune(fine, "--server-id", "server-a", "--yes") // which is us
	c.lost(c.before, c.dead, c.deadHalf, c.superseded, c.half)
}

func TestPruneRefusesWhileTheServerRuns(t *testing.T) {
	c := newCrowd(t)
	file, err := os.Open(c.identity)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"--yes"}, {"--yes", "--server-id", "server-a"}, {"--yes", "--server-id-file", c.identity}} {
		c.contains(c.prune(cannot, args...), "in use by another process")
		c.lost(c.before)
	}
	c.contains(c.prune(fine), "2 keys would be destroyed")
	c.prune(fine, "--yes", "--other-servers")
	c.lost(c.before, c.dead, c.deadHalf)
}

func TestPruneRefusesWhileARealServerRuns(t *testing.T) {
	s := newScene(t, "")
	p := host.Start(t, host.Options{Type: "KeyManager", Env: s.token.Env()})
	if err := p.Configure("example.org", s.token.PluginData("")); err != nil {
		t.Fatal(err)
	}
	s.contains(s.command(cannot, "prune", "--yes"), "in use by another process", "stop the server")
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestPruneRefusesWithoutAnIdentity(t *testing.T) {
	c := newCrowd(t)
	if err := os.Remove(c.identity); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"--yes"}, {"--yes", "--other-servers"}, {"--yes", "--server-id", "server-b"}} {
		c.contains(c.prune(cannot, args...), "cannot tell which keys are this server's")
		c.lost(c.before)
	}
	if _, err := os.Stat(c.identity); err == nil {
		t.Fatal("prune has made an identity")
	}
}

func TestPruneSaysWhatItCouldNotDestroy(t *testing.T) {
	s := faulty(t, "", "C_DestroyObject before CKR_ACTION_PROHIBITED")
	s.write(filepath.Join(s.token.Dir, "hsm-id"), "server-a")
	label := s.put("example.org", "server-a", 1000, "A")
	s.put("example.org", "server-a", 2000, "A")
	before := s.objects()
	s.contains(s.command(wrong, "prune", "--yes"), "NOT DESTROYED", label, "CKR_ACTION_PROHIBITED", "0 of 1 key destroyed")
	s.lost(before)
}

// The number of a stderr that was closed must not become the identity file's, into which the
// warnings would be written.
func TestPruneWithoutStandardDescriptors(t *testing.T) {
	for _, closed := range []string{"2>&-", ">&- 2>&-", "<&- >&- 2>&-", "<&- 2>&-"} {
		s := faulty(t, "", "C_FindObjectsInit 1 before segv once shared")
		identity := filepath.Join(s.token.Dir, "hsm-id")
		s.write(identity, "server-a")
		s.put("example.org", "server-a", 1000, "A")
		cmd := exec.Command("sh", "-c", `exec "$0" "$@" `+closed, host.Binary(t),
			"prune", "--config", s.data, "--trust-domain", "example.org", "--yes")
		cmd.Env = append(os.Environ(), s.env...)
		_ = cmd.Run()
		if text, err := os.ReadFile(identity); err != nil || string(text) != "server-a" {
			t.Errorf("%s: the identity is %q (%v)", closed, text, err)
		}
	}
}

// Each try is a login. A person waits for the sentence, and a scan may take minutes.
func TestWhatFailsEachTimeIsSaidSoon(t *testing.T) {
	for _, name := range []string{"check", "keys", "prune"} {
		s := faulty(t, "", "C_FindObjectsInit before CKR_DEVICE_ERROR")
		s.write(filepath.Join(s.token.Dir, "hsm-id"), "server-a")
		begun := time.Now()
		cmd := exec.Command(host.Binary(t), name, "--config", s.data, "--trust-domain", "example.org")
		cmd.Env = append(os.Environ(), s.env...)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		limit := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
		err := cmd.Run()
		limit.Stop()
		s.contains(out.String(), "C_FindObjectsInit: CKR_DEVICE_ERROR")
		if took := time.Since(begun); err == nil || took > 20*time.Second {
			t.Errorf("%s: %v after %v\n%s", name, err, took, &out)
		}
	}
}
