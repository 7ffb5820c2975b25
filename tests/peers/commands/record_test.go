package commands_test

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"spire-hsm/peers/host"
)

// identity of a scene's server; its record has .keys at the end.
func (s *scene) identity() string {
	return filepath.Join(s.token.Dir, "hsm-id")
}

func (s *scene) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// copied file, which is another one then, as on another host.
func (s *scene) copied(from, to string) {
	s.Helper()
	text, err := os.ReadFile(from)
	s.must(err)
	s.must(os.WriteFile(to+".new", text, 0o600))
	s.must(os.Rename(to+".new", to))
}

func (s *scene) states() map[string]int {
	s.Helper()
	found := map[string]int{}
	for _, k := range s.keys().Keys {
		found[k.State]++
	}
	return found
}

// A record that was restored knows the keys made later where it was kept then, and no others.
func TestCheckAndKeysTellOfKeysThatARestoredRecordDoesNotKnow(t *testing.T) {
	s := newScene(t, "")
	record := s.identity() + ".keys"
	s.generate("example.org", "x509-CA-A")
	s.copied(record, record+".backup")
	s.generate("example.org", "x509-CA-A")
	for s.keys().Keys[0].Age == 0 { // two keys in one second: the second is ahead of the clock
		time.Sleep(50 * time.Millisecond)
	}
	s.copied(record+".backup", record)
	s.command(fine, "check", "--no-trial")
	if states := s.states(); states["current"] != 1 || states["not served"] != 0 {
		t.Fatalf("made in the same place: %v", states)
	}
	s.copied(s.identity(), s.identity())
	s.generate("example.org", "x509-CA-A")
	s.copied(record+".backup", record)
	s.copied(s.identity(), s.identity())
	s.contains(s.command(wrong, "check", "--no-trial"), "MISSING", "it does not know newer keys of this server",
		`key "x509-CA-A"`, "remove it and its copy")
	if states := s.states(); states["not served"] != 1 || states["current"] != 1 {
		t.Fatalf("made in another place: %v", states)
	}
	s.must(os.Remove(record))
	s.must(os.Remove(record + "~"))
	s.contains(s.command(fine, "check", "--no-trial"), "no record yet")
	if states := s.states(); states["not served"] != 0 || states["current"] != 1 {
		t.Fatalf("without the record: %v", states)
	}
}

func TestKeysAreListedThoughTheRecordIsDamaged(t *testing.T) {
	s := newScene(t, "")
	s.generate("example.org", "x509-CA-A")
	s.write(s.identity()+".keys", "{")
	s.write(s.identity()+".keys~", "{")
	s.contains(s.command(fine, "keys"), "spire-hsm: warning: ", "restore one of them", "x509-CA-A", "current")
}

// Of the identity and the record beside it one is another server's.
func TestAStartBesideAnotherServersRecordIsRefusedUntilItIsAccepted(t *testing.T) {
	s := newScene(t, "")
	s.generate("example.org", "x509-CA-A")
	s.copied(s.identity(), s.identity()+".own")
	s.write(s.identity(), "another server")
	const said = "is another server's"
	start := func(options string) error {
		p := host.Start(s, host.Options{Type: "KeyManager", Env: s.token.Env()})
		err := p.Configure("example.org", s.token.PluginData(options))
		s.must(p.Close())
		return err
	}
	err := start("")
	if err == nil {
		t.Fatal("it starts")
	}
	s.contains(err.Error(), said, s.identity()+".keys", "FailedPrecondition")
	code := regexp.MustCompile(`accept_loss = "([0-9a-f]{8})"`).FindStringSubmatch(err.Error())
	if code == nil {
		t.Fatalf("no code in: %v", err)
	}
	s.contains(s.command(wrong, "check", "--no-trial"), "MISSING", said)
	s.contains(s.command(wrong, "accept"), said, code[1])
	s.contains(s.command(fine, "keys"), "spire-hsm: warning: ", said, "x509-CA-A")

	s.copied(s.identity(), s.identity()+".another")
	s.copied(s.identity()+".own", s.identity())
	s.must(start(""))
	s.copied(s.identity()+".another", s.identity())
	s.contains(s.command(fine, "accept", code[1]), "accepted")
	s.must(start(""))
	s.must(start(""))
	s.copied(s.identity()+".own", s.identity())
	if states := s.states(); states["current"] != 1 {
		t.Fatalf("of the first server: %v", states)
	}
	s.must(start(""))
}
