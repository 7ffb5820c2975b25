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
	rounds := either(7, 40)
	faults(t, rounds)
	const kept = 4 // keep_condemned
	b := newBench(t, "")
	b.Data = strings.Replace(b.Data, "destroy_superseded_after = 0\n", "", 1)
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
	if pairs := len(b.Labels(t)); pairs > 1+kept {
		t.Errorf("%d keys are on the token after %d starts, want %d at most", pairs, rounds, 1+kept)
	}
	scene.Write(t, path, string(without)) // as if it were back
	s.start()
	_, err = s.run("jwt", "mint", "-spiffeID", "spiffe://example.org/w", "-audience", "a")
	scene.Must(t, err)
	if line := strings.Join(s.complaints(), "\n"); strings.Contains(line, "pkcs11") {
		t.Errorf("at the start that went well: %s", line)
	}
}
