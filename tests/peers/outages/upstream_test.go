package outages

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spire-hsm/peers/scene"
)

// fails is a start that ends by itself: what spire-server has logged.
func (s *server) fails() string {
	s.t.Helper()
	s.number++
	s.log = filepath.Join(s.dir, fmt.Sprintf("log.%d", s.number))
	log, err := os.Create(s.log)
	scene.Must(s.t, err)
	defer func() { _ = log.Close() }()
	s.Daemon = scene.Launch(s.t, s.env, log, s.bin, "run", "-config", filepath.Join(s.dir, "server.conf"))
	select {
	case <-s.Done:
	case <-time.After(time.Minute):
		s.t.Fatal("spire-server goes on without its upstream authority")
	}
	text, err := os.ReadFile(s.log)
	scene.Must(s.t, err)
	return string(text)
}

// A server whose upstream authority is away makes a key for its X.509 CA, gets no certificate for
// it, and ends; and so again when it is restarted, for as long as that lasts.
func TestACrashLoopWithTheUpstreamAwayDoesNotFillTheToken(t *testing.T) {
	t.Parallel()
	const kept = 4 // keep_condemned
	crashLoop(t, newBench(t, ""), 1+kept)
}

// There what was condemned goes before its day.
func TestACrashLoopWithTheUpstreamAwayGoesOnOnAFullToken(t *testing.T) {
	t.Parallel()
	const pairs = 4
	crashLoop(t, newFaulty(t, "", fmt.Sprintf("profile room %d", 2*pairs)), pairs)
}

// crashLoop leaves so many keys on the token at most; and when the upstream is back the server starts.
func crashLoop(t *testing.T, b *bench, most int) {
	t.Helper()
	rounds := either(7, 40)
	faults(t, rounds)
	b.Data = withDefaults(b.Data)
	s := newServer(t, b)
	path := filepath.Join(s.dir, "server.conf")
	without, err := os.ReadFile(path)
	scene.Must(t, err)
	upstream := `    UpstreamAuthority "vault" { plugin_data { vault_addr = "http://127.0.0.1:1"  token_auth { token = "t" } } }` + "\n"
	with := strings.Replace(string(without), "plugins {\n", "plugins {\n"+upstream, 1)
	scene.Write(t, path, with)
	for range rounds {
		if log := s.fails(); !strings.Contains(log, "key made") {
			t.Fatalf("it ended without a key:\n%s", log)
		}
	}
	if pairs := len(b.Labels(t)); pairs > most {
		t.Errorf("%d keys are on the token after %d starts, want %d at most", pairs, rounds, most)
	}
	scene.Write(t, path, string(without)) // as if it were back
	s.start()
	_, err = s.run("jwt", "mint", "-spiffeID", "spiffe://example.org/w", "-audience", "a")
	scene.Must(t, err)
	if line := strings.Join(s.complaints(), "\n"); strings.Contains(line, "pkcs11") {
		t.Errorf("at the start that went well: %s", line)
	}
}
