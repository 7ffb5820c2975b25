package outages

import (
	"bytes"
	"strings"
	"syscall"
	"testing"

	"spire-hsm/peers/host"
	"spire-hsm/peers/scene"
)

// Habits that a token may have all at once; each by itself is in hsm/habits.c and peers/faults.
var odd = []string{
	"profile token-flags-off 0xffffffff", "profile token-flags 0x2", "profile unpadded", "profile not-present",
	"profile plain-start", "profile blank-mechanisms", "profile stateless", "profile exact", "profile one-attribute",
	"profile narrow", "profile rawpoint", "profile one-object", "profile from-zero", "profile rude", "profile moving",
	"C_GetMechanismList before CKR_FUNCTION_NOT_SUPPORTED", "C_GenerateRandom before CKR_FUNCTION_NOT_SUPPORTED",
	"C_GetInfo before CKR_FUNCTION_NOT_SUPPORTED", "C_GetSlotInfo before CKR_FUNCTION_NOT_SUPPORTED",
}

func TestASpireServerLivesOnATokenThatIsOddInEveryWay(t *testing.T) {
	b := newFaulty(t, "", strings.Join(odd, "\n"))
	s := newServer(t, b)
	faults(t, 2)
	mint := func() {
		t.Helper()
		_, err := s.run("jwt", "mint", "-spiffeID", "spiffe://example.org/w", "-audience", "a")
		scene.Must(t, err)
	}
	s.start()
	mint()
	before, err := s.run("bundle", "show", "-format", "spiffe")
	scene.Must(t, err)
	all := family(t, s.Process.Pid)
	worker := all[len(all)-1]
	scene.Must(t, syscall.Kill(worker, syscall.SIGKILL))
	mint()
	s.Kill()
	for _, pid := range all {
		scene.Eventually(t, "front and worker go with spire-server", func() bool { return host.Gone(pid) })
	}
	s.start()
	for _, line := range s.complaints() {
		t.Errorf("at the restart: %s", line)
	}
	after, err := s.run("bundle", "show", "-format", "spiffe")
	scene.Must(t, err)
	if !bytes.Equal(before, after) {
		t.Errorf("another bundle after the restart: keys were lost\n%s\n%s", before, after)
	}
	mint()
}
