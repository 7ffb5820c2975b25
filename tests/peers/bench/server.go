package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"spire-hsm/peers/softhsm"
)

// workload that SVIDs are minted for.
var workload = &types.SPIFFEID{TrustDomain: "example.org", Path: "/workload"}

// server is a real spire-server with one of the key managers, and what it reached.
type server struct {
	name       string
	keyManager func(token *softhsm.Token) string // its block of the configuration
	cmd        *exec.Cmd
	conn       *grpc.ClientConn
	remove     func()
	results    []result
}

// minting: how SPIRE's administrators ask for an SVID, which is one signature.
type minting struct {
	name string
	call func(ctx context.Context, client svidv1.SVIDClient, csr []byte) error
}

var mintings = []minting{
	{"JWT-SVID", func(ctx context.Context, client svidv1.SVIDClient, _ []byte) error {
		_, err := client.MintJWTSVID(ctx, &svidv1.MintJWTSVIDRequest{Id: workload, Audience: []string{"mys3"}})
		return err
	}},
	{"X.509-SVID", func(ctx context.Context, client svidv1.SVIDClient, csr []byte) error {
		_, err := client.MintX509SVID(ctx, &svidv1.MintX509SVIDRequest{Csr: csr})
		return err
	}},
}

// measureServer compares a real server's rate of SVIDs with our keys, with those of SPIRE's disk key
// manager, which signs in the server's own process, and with the Go peer's, in turns. All keys are
// EC P-256, as SPIRE has them by default.
func measureServer(r *report) error {
	servers := []*server{
		{name: "ours", keyManager: external(*binary)},
		{name: "disk", keyManager: onDisk},
		{name: "peer", keyManager: external(*peer)},
	}
	for _, s := range servers {
		defer s.stop()
		if err := s.start(); err != nil {
			return fmt.Errorf("spire-server, %s: %w", s.name, err)
		}
	}
	csr, err := certificateRequest()
	if err != nil {
		return err
	}
	fmt.Printf("%-16s %9s %9s %9s  %9s %9s  %9s %9s %9s  %9s %9s %9s\n", "minted, callers", "ours/s", "disk/s", "peer/s",
		"ours/disk", "ours/peer", "p50 us", "disk", "peer", "CPU us", "disk", "peer")
	for _, m := range mintings {
		for _, callers := range []int{1, 32} {
			if !wanted(*cells, fmt.Sprintf("%s/%d", m.name, callers)) {
				continue
			}
			if err := takeServersTurns(servers, m, csr, callers); err != nil {
				return err
			}
			disk := cell{ours: servers[0].results, bare: servers[1].results}
			printServers(fmt.Sprintf("%-11s %4d", m.name, callers), servers, &disk)
			r.atLeast(fmt.Sprintf("%s/%d, share of the rate with SPIRE's disk", m.name, callers), disk.ratio(rate), 0.8)
		}
	}
	fmt.Println("minted: by a real spire-server over its own socket; CPU: of server and plugin together, an SVID")
	fmt.Println()
	return nil
}

func takeServersTurns(servers []*server, m minting, csr []byte, callers int) error {
	for _, s := range servers {
		s.results = nil
	}
	for range *rounds {
		for _, s := range servers {
			client := svidv1.NewSVIDClient(s.conn)
			call := func() error { return m.call(ctx, client, csr) }
			result, err := callFor(call, family(s.cmd.Process.Pid), callers, *length)
			if err != nil {
				return fmt.Errorf("%s: %s: %w", s.name, m.name, err)
			}
			s.results = append(s.results, result)
		}
	}
	return nil
}

func printServers(name string, servers []*server, disk *cell) {
	peer := cell{ours: servers[0].results, bare: servers[2].results}
	fmt.Printf("%-16s", name)
	for _, s := range servers {
		fmt.Printf(" %9.0f", peer.of(s.results, rate))
	}
	fmt.Printf("  %9.2f %9.2f ", disk.ratio(rate), peer.ratio(rate))
	for _, value := range []func(result) float64{p50, cpu} {
		for _, s := range servers {
			fmt.Printf(" %9.0f", peer.of(s.results, value))
		}
		fmt.Print(" ")
	}
	fmt.Println()
}

// certificateRequest that every X.509-SVID of a run is minted for.
func certificateRequest() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	id := &url.URL{Scheme: "spiffe", Host: workload.TrustDomain, Path: workload.Path}
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{id}}, key)
}

// ---- a server's life ----

func onDisk(token *softhsm.Token) string {
	return fmt.Sprintf("KeyManager \"disk\" { plugin_data { keys_path = %q } }", filepath.Join(token.Dir, "keys.json"))
}

func external(path string) func(*softhsm.Token) string {
	return func(token *softhsm.Token) string {
		return fmt.Sprintf("KeyManager \"pkcs11\" {\nplugin_cmd = %q\nplugin_data {\n%s}\n}", path, token.PluginData(""))
	}
}

const serverConfiguration = `server {
    trust_domain = "%s"
    bind_address = "127.0.0.1"
    bind_port = "%d"
    socket_path = "%s"
    data_dir = "%s"
    log_level = "ERROR"
    log_file = "%s"
    jwt_issuer = "https://oidc.example.org"
}
plugins {
    DataStore "sql" { plugin_data {
        database_type = "sqlite3"
        connection_string = "%s"
    } }
    NodeAttestor "join_token" { plugin_data {} }
    %s
}
`

// start the server and wait until it has minted: it listens before its keys are made.
func (s *server) start() error {
	token, remove, err := newToken()
	if err != nil {
		return err
	}
	s.remove = remove
	port, err := freePort()
	if err != nil {
		return err
	}
	in := func(name string) string { return filepath.Join(token.Dir, name) }
	text := fmt.Sprintf(serverConfiguration, workload.TrustDomain, port, in("api.sock"), token.Dir, in("log"),
		in("datastore.sqlite3"), s.keyManager(token))
	if err := os.WriteFile(in("server.conf"), []byte(text), 0o600); err != nil {
		return err
	}
	s.cmd = exec.Command(filepath.Join(*spire, "spire-server"), "run", "-config", in("server.conf"))
	s.cmd.Env = append(os.Environ(), token.Env()...)
	if err := s.cmd.Start(); err != nil {
		return err
	}
	s.conn, err = grpc.NewClient("unix:"+in("api.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	patience, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	_, err = svidv1.NewSVIDClient(s.conn).MintJWTSVID(patience,
		&svidv1.MintJWTSVIDRequest{Id: workload, Audience: []string{"mys3"}}, grpc.WaitForReady(true))
	if err != nil {
		said, _ := os.ReadFile(in("log"))
		return fmt.Errorf("it mints nothing: %w\n%s", err, strings.TrimSpace(string(said)))
	}
	return nil
}

func (s *server) stop() {
	if s.conn != nil {
		_ = s.conn.Close()
	}
	if s.cmd != nil && s.cmd.Process != nil {
		_ = s.cmd.Process.Signal(os.Interrupt)
		_ = s.cmd.Wait()
	}
	if s.remove != nil {
		s.remove()
	}
}

func freePort() (int, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().(*net.TCPAddr).Port, nil
}
