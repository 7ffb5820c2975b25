// Package wire drives the real binary over its socket with a real go-plugin host: what it
// serves here, its start (handshake), its end and what it must bear (abuse) in files of their own.
package wire

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"spire-hsm/peers/host"
)

const (
	serverKeyManager = "spire.plugin.server.keymanager.v1.KeyManager"
	agentKeyManager  = "spire.plugin.agent.keymanager.v1.KeyManager"
	publisher        = "spire.plugin.server.bundlepublisher.v1.BundlePublisher"
	notifier         = "spire.plugin.server.notifier.v1.Notifier"
	config           = "spire.service.common.config.v1.Config"

	configureMethod = "/spire.service.common.config.v1.Config/Configure"
	initMethod      = "/spire.service.private.init.v1.Init/Init"
	shutdownMethod  = "/plugin.GRPCController/Shutdown"
	stdioMethod     = "/plugin.GRPCStdio/StreamStdio"
	brokerMethod    = "/plugin.GRPCBroker/StartStream"
)

func expect(t *testing.T, err error, code codes.Code, words ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("%v, expected %v", err, code)
	}
	for _, word := range words {
		if !strings.Contains(status.Convert(err).Message(), word) {
			t.Errorf("%q does not mention %q", status.Convert(err).Message(), word)
		}
	}
}

func check(conn *grpc.ClientConn, service string) (*healthv1.HealthCheckResponse, error) {
	return healthv1.NewHealthClient(conn).Check(context.Background(),
		&healthv1.HealthCheckRequest{Service: service}, grpc.WaitForReady(true))
}

func expectHealthy(t *testing.T, conn *grpc.ClientConn) {
	t.Helper()
	if _, err := check(conn, "plugin"); err != nil {
		t.Errorf("not healthy any more: %v", err)
	}
}

func shutdown(t *testing.T, b *host.Bare) {
	t.Helper()
	if _, err := host.Invoke(t.Context(), b.Dial(t), shutdownMethod, nil); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	expectEnd(t, b)
}

func expectEnd(t *testing.T, b *host.Bare) {
	t.Helper()
	if code := b.Wait(); code != 0 {
		t.Errorf("exit status %d, stderr:\n%s", code, b.Stderr())
	}
	expectNoSocket(t, b.Socket)
}

func expectNoSocket(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

// stream opens a stream and keeps it open.
func stream(t *testing.T, conn *grpc.ClientConn, method string) grpc.ClientStream {
	t.Helper()
	s, err := conn.NewStream(context.Background(),
		&grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Header(); err != nil {
		t.Fatalf("%s: %v", method, err)
	}
	return s
}

func TestOnlyTheServicesOfTheRoleAreAnnounced(t *testing.T) {
	for _, row := range []struct {
		role    string
		agent   bool
		service string
	}{
		{"KeyManager", false, serverKeyManager},
		{"KeyManager", true, agentKeyManager},
		{"BundlePublisher", false, publisher},
		{"Notifier", false, notifier},
	} {
		p := host.Start(t, host.Options{Type: row.role, Agent: row.agent})
		slices.Sort(p.Services)
		want := []string{row.service, config}
		slices.Sort(want)
		if !slices.Equal(p.Services, want) {
			t.Errorf("%s: %v", row.role, p.Services)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		for _, line := range p.Logs.Lines() {
			if line.Level >= hclog.Warn {
				t.Errorf("%s: %v", row.role, line)
			}
		}
	}
}

func TestHealth(t *testing.T) {
	p := host.Start(t, host.Options{Type: "BundlePublisher"})
	if err := p.Ping(); err != nil {
		t.Error(err)
	}
	for _, service := range []string{"plugin", ""} {
		response, err := check(p.Conn, service)
		if err != nil || response.Status != healthv1.HealthCheckResponse_SERVING {
			t.Errorf("%q: %v %v", service, response, err)
		}
	}
	_, err := check(p.Conn, serverKeyManager)
	expect(t, err, codes.NotFound, "unknown service")
}

func TestUnknownMethodsAreUnimplemented(t *testing.T) {
	p := host.Start(t, host.Options{Type: "Notifier"})
	for _, method := range []string{"/" + serverKeyManager + "/SignData", "/grpc.health.v1.Health/Watch", "/x/y", "/%00%ff/é"} {
		for range 3 {
			_, err := p.Invoke(t.Context(), method, []byte("whatever"))
			expect(t, err, codes.Unimplemented)
		}
	}
	expectHealthy(t, p.Conn)
}

func TestConfigureNeedsTheTrustDomain(t *testing.T) {
	p := host.Start(t, host.Options{Type: "BundlePublisher"})
	_, err := p.Invoke(t.Context(), configureMethod, nil)
	expect(t, err, codes.InvalidArgument, "core configuration")
	expect(t, p.Configure("", ""), codes.InvalidArgument, "trust domain")
	_, err = p.Validate("", "")
	expect(t, err, codes.InvalidArgument, "trust domain")
}

func TestLogLinesArriveWithLevelAndFields(t *testing.T) {
	p := host.Start(t, host.Options{Type: "BundlePublisher"})
	path := filepath.Join(t.TempDir(), "bundle.json")
	if err := p.Configure("example.org", fmt.Sprintf("path = %q", path)); err != nil {
		t.Fatal(err)
	}
	line := p.Logs.Wait(t, "configured")
	if line.Level != hclog.Info || line.Message != "configured" || line.Fields["trust_domain"] != "example.org" {
		t.Errorf("%v", line)
	}
	expect(t, p.Configure("example.org", fmt.Sprintf("path = %q\nbad = 1\n", path)), codes.InvalidArgument, "bad")
	if line := p.Logs.Wait(t, `"bad`); line.Level != hclog.Error {
		t.Errorf("%v", line)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	for _, line := range p.Logs.Lines() {
		if timestamp, ok := line.Fields["timestamp"]; ok && strings.HasPrefix(timestamp, "0001") {
			t.Errorf("no date: %v", line)
		}
	}
}

// `spire-server validate` takes any note for a mistake.
func TestARightConfigurationHasNoNotesWhateverIsRemarkable(t *testing.T) {
	p := host.Start(t, host.Options{Type: "KeyManager"})
	response, err := p.Validate("example.org", `module = "/usr/lib/softhsm/libsofthsm2.so"
token = "pkcs11:token=spire"
pin = "1234"
key_identifier_value = "x"`)
	if err != nil || !response.Valid || len(response.Notes) != 0 {
		t.Errorf("%v %v", response, err)
	}
	if line := p.Logs.Wait(t, "local tests only"); line.Level != hclog.Warn {
		t.Errorf("%v", line)
	}
}

func TestValidateTellsWithoutFailing(t *testing.T) {
	p := host.Start(t, host.Options{Type: "BundlePublisher"})
	path := filepath.Join(t.TempDir(), "bundle.json")
	response, err := p.Validate("example.org", fmt.Sprintf("path = %q", path))
	if err != nil || !response.Valid {
		t.Errorf("%v %v", response, err)
	}
	response, err = p.Validate("example.org", fmt.Sprintf("path = %q\nbad = 1\n", path))
	if err != nil || response.Valid || len(response.Notes) != 1 || !strings.Contains(response.Notes[0], "bad") {
		t.Errorf("%v %v", response, err)
	}
}
