// Package host loads spire-hsm the way SPIRE loads an external plugin
// (pkg/common/catalog in SPIRE): go-plugin with the plugin type as cookie, host
// services brokered as service 1, then Init; and unloads it the way SPIRE does:
// Deinit, Shutdown, two seconds, SIGKILL.
//
//	p := host.Start(t, host.Options{Type: "KeyManager"})
//	err := p.Configure("example.org", `module = "..."`)
//	keys, err := p.KeyManager().GetPublicKeys(ctx, ...)
//
// Start ends the plugin with the test and fails it if the plugin did not end well.
package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	goplugin "github.com/hashicorp/go-plugin"
	"github.com/spiffe/spire-plugin-sdk/pluginsdk"
	"github.com/spiffe/spire-plugin-sdk/private"
	metricsv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/hostservice/common/metrics/v1"
	agentstorev1 "github.com/spiffe/spire-plugin-sdk/proto/spire/hostservice/server/agentstore/v1"
	agentkeymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/keymanager/v1"
	bundlepublisherv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/bundlepublisher/v1"
	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"
	notifierv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/notifier/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Options say what to load and as whom.
type Options struct {
	Path  string   // the binary; empty = $SPIRE_HSM
	Type  string   // KeyManager, BundlePublisher, Notifier
	Name  string   // as in the server's configuration; empty = "hsm"
	Args  []string // plugin_args
	Env   []string // added to this process's environment
	Agent bool     // be a spire-agent: offer Metrics alone

	Multiplex bool                         // ask for broker multiplexing (SPIRE does not)
	AutoMTLS  bool                         // ask for mutual TLS (SPIRE does not)
	Unix      *goplugin.UnixSocketConfig   // ask for a socket group
	Change    func(*exec.Cmd)              // last changes before the start
	Configure func(*goplugin.ClientConfig) // likewise
}

// Plugin is a loaded plugin.
type Plugin struct {
	Conn     *grpc.ClientConn
	Services []string // as announced by Init
	Logs     *Logs    // everything it and go-plugin said, with levels and fields

	metrics *metrics

	client *goplugin.Client
	cmd    *exec.Cmd
	end    func()
	once   sync.Once
}

// Binary is $SPIRE_HSM; without it the test cannot run.
func Binary(t testing.TB) string {
	t.Helper()
	path := os.Getenv("SPIRE_HSM")
	if path == "" {
		t.Fatal("SPIRE_HSM must be the path of the spire-hsm binary")
	}
	return path
}

// Install copies both programs into a folder; the path of spire-hsm there.
func Install(t testing.TB, folder string) string {
	t.Helper()
	for _, name := range []string{"spire-hsm", "spire-hsm-worker"} {
		program, err := os.ReadFile(filepath.Join(filepath.Dir(Binary(t)), name))
		if err == nil {
			err = os.WriteFile(filepath.Join(folder, name), program, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(folder, "spire-hsm")
}

// Start loads a plugin for the length of a test.
func Start(t testing.TB, options Options) *Plugin {
	t.Helper()
	if options.Path == "" {
		options.Path = Binary(t)
	}
	p, err := Load(t.Context(), options)
	if err != nil {
		t.Fatalf("load %s: %v", options.Type, err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("unload: %v", err)
		}
		if t.Failed() {
			t.Logf("the plugin's log:\n%s", p.Logs)
		}
	})
	return p
}

// Load starts the binary and does with it what SPIRE does before Configure.
func Load(ctx context.Context, options Options) (*Plugin, error) {
	if options.Name == "" {
		options.Name = "hsm"
	}
	p := &Plugin{Logs: newLogs(), metrics: newMetrics()}
	p.cmd = exec.Command(options.Path, options.Args...)
	p.cmd.Env = options.Env
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if options.Change != nil {
		options.Change(p.cmd)
	}
	services := hostServices(options.Agent, p.metrics)
	config := &goplugin.ClientConfig{
		HandshakeConfig: goplugin.HandshakeConfig{
			ProtocolVersion:  1,
			MagicCookieKey:   options.Type,
			MagicCookieValue: options.Type,
		},
		Cmd:                 p.cmd,
		AutoMTLS:            options.AutoMTLS,
		GRPCBrokerMultiplex: options.Multiplex,
		UnixSocketConfig:    options.Unix,
		AllowedProtocols:    []goplugin.Protocol{goplugin.ProtocolGRPC},
		Plugins:             map[string]goplugin.Plugin{options.Name: &broker{services: services}},
		Logger:              p.Logs.logger,
	}
	if options.Configure != nil {
		options.Configure(config)
	}
	p.client = goplugin.NewClient(config)
	if err := p.load(ctx, options.Name, services); err != nil {
		p.client.Kill()
		return nil, fmt.Errorf("%w\nthe plugin's log:\n%s", err, p.Logs)
	}
	return p, nil
}

func (p *Plugin) load(ctx context.Context, name string, services []pluginsdk.ServiceServer) error {
	protocol, err := p.client.Client()
	if err != nil {
		return fmt.Errorf("failed to launch plugin: %w", err)
	}
	raw, err := protocol.Dispense(name)
	if err != nil {
		return err
	}
	served := raw.(*brokered)
	p.Conn = served.conn
	p.end = served.end
	var names []string
	for _, service := range services {
		names = append(names, service.GRPCServiceName())
	}
	p.Services, err = private.Init(ctx, p.Conn, names)
	return err
}

// A worker finishes the call it is in, and is gone 10 s after its front at the latest.
const workersPatience = 12 * time.Second

// Close unloads the plugin and says what was wrong with that. Further calls do nothing.
func (p *Plugin) Close() error {
	var err error
	p.once.Do(func() { err = p.close() })
	return err
}

func (p *Plugin) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	exited := p.client.Exited()
	workers := p.Workers()
	var problems []error
	if err := private.Deinit(ctx, p.Conn); err != nil && !exited {
		problems = append(problems, fmt.Errorf("Deinit: %w", err))
	}
	p.end()
	p.client.Kill()
	if state := p.cmd.ProcessState; !exited && (state == nil || !state.Success()) {
		problems = append(problems, fmt.Errorf("ended with %v", state))
	}
	// one that was killed leaves its socket behind, any other may not
	if err := os.Remove(p.Socket()); !exited && !errors.Is(err, os.ErrNotExist) {
		problems = append(problems, fmt.Errorf("left its socket behind: %v", err))
	}
	for _, worker := range workers {
		for end := time.Now().Add(workersPatience); !Gone(worker); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				problems = append(problems, fmt.Errorf("left worker %d behind", worker))
				break
			}
		}
	}
	return errors.Join(problems...)
}

// Kill ends the process without telling it anything first.
func (p *Plugin) Kill() {
	_ = p.cmd.Process.Kill()
}

// Signal sends it a signal.
func (p *Plugin) Signal(signal os.Signal) error {
	return p.cmd.Process.Signal(signal)
}

// Exited: has it, whatever the reason? State has its exit status then.
func (p *Plugin) Exited() bool {
	return p.client.Exited()
}

// State is how it ended; nil while it runs.
func (p *Plugin) State() *os.ProcessState {
	if !p.client.Exited() {
		return nil
	}
	return p.cmd.ProcessState
}

// PID of the process SPIRE knows (the front).
func (p *Plugin) PID() int {
	return p.cmd.Process.Pid
}

// Socket is the path it listens on.
func (p *Plugin) Socket() string {
	if reattach := p.client.ReattachConfig(); reattach != nil {
		return reattach.Addr.(*net.UnixAddr).Name
	}
	return ""
}

// Ping asks for its health as go-plugin does.
func (p *Plugin) Ping() error {
	protocol, err := p.client.Client()
	if err != nil {
		return err
	}
	return protocol.Ping()
}

// Configure as SPIRE does: no deadline.
func (p *Plugin) Configure(trustDomain, pluginData string) error {
	_, err := configv1.NewConfigClient(p.Conn).Configure(context.Background(), &configv1.ConfigureRequest{
		CoreConfiguration: &configv1.CoreConfiguration{TrustDomain: trustDomain},
		HclConfiguration:  pluginData,
	})
	return err
}

// Validate as `spire-server validate` does.
func (p *Plugin) Validate(trustDomain, pluginData string) (*configv1.ValidateResponse, error) {
	return configv1.NewConfigClient(p.Conn).Validate(context.Background(), &configv1.ValidateRequest{
		CoreConfiguration: &configv1.CoreConfiguration{TrustDomain: trustDomain},
		HclConfiguration:  pluginData,
	})
}

// KeyManager of a server.
func (p *Plugin) KeyManager() keymanagerv1.KeyManagerClient {
	return keymanagerv1.NewKeyManagerClient(p.Conn)
}

// AgentKeyManager of an agent.
func (p *Plugin) AgentKeyManager() agentkeymanagerv1.KeyManagerClient {
	return agentkeymanagerv1.NewKeyManagerClient(p.Conn)
}

// BundlePublisher of a server.
func (p *Plugin) BundlePublisher() bundlepublisherv1.BundlePublisherClient {
	return bundlepublisherv1.NewBundlePublisherClient(p.Conn)
}

// Notifier of a server.
func (p *Plugin) Notifier() notifierv1.NotifierClient {
	return notifierv1.NewNotifierClient(p.Conn)
}

// Invoke calls a method with a request of any bytes.
func (p *Plugin) Invoke(ctx context.Context, method string, request []byte, options ...grpc.CallOption) ([]byte, error) {
	return Invoke(ctx, p.Conn, method, request, options...)
}

// Invoke calls a method with a request of any bytes.
func Invoke(ctx context.Context, conn *grpc.ClientConn, method string, request []byte, options ...grpc.CallOption) ([]byte, error) {
	var response []byte
	err := conn.Invoke(ctx, method, &request, &response, append(options, grpc.ForceCodec(bytesCodec{}))...)
	return response, err
}

type bytesCodec struct{}

func (bytesCodec) Name() string { return "proto" }

func (bytesCodec) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (bytesCodec) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}

type agentStore struct {
	agentstorev1.UnimplementedAgentStoreServer
}

type metrics struct {
	metricsv1.UnimplementedMetricsServer
	mutex    sync.Mutex
	counters map[string]float32 // by name, and by name and labels: a.b and a.b{c=d,e=f}
	latest   map[string]float32 // gauges and samples by name and labels
	changed  chan struct{}      // closed, and made anew, with every figure
	refuse   int                // so many calls are still to be refused
}

func newMetrics() *metrics {
	return &metrics{counters: map[string]float32{}, latest: map[string]float32{}, changed: make(chan struct{})}
}

func labelled(key []string, labels []*metricsv1.Label) string {
	pairs := make([]string, len(labels))
	for i, label := range labels {
		pairs[i] = label.Name + "=" + label.Value
	}
	return strings.Join(key, ".") + "{" + strings.Join(pairs, ",") + "}"
}

// IncrCounter keeps the sums of each counter.
func (m *metrics) IncrCounter(_ context.Context, request *metricsv1.IncrCounterRequest) (*emptypb.Empty, error) {
	return m.take(func() {
		m.counters[strings.Join(request.Key, ".")] += request.Val
		m.counters[labelled(request.Key, request.Labels)] += request.Val
	})
}

// SetGauge keeps each gauge's latest value.
func (m *metrics) SetGauge(_ context.Context, request *metricsv1.SetGaugeRequest) (*emptypb.Empty, error) {
	return m.take(func() { m.latest[labelled(request.Key, request.Labels)] = request.Val })
}

// AddSample keeps each sample's latest value.
func (m *metrics) AddSample(_ context.Context, request *metricsv1.AddSampleRequest) (*emptypb.Empty, error) {
	return m.take(func() { m.latest[labelled(request.Key, request.Labels)] = request.Val })
}

func (m *metrics) take(keep func()) (*emptypb.Empty, error) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if m.refuse > 0 {
		m.refuse--
		return nil, status.Error(codes.Unavailable, "not now")
	}
	keep()
	close(m.changed)
	m.changed = make(chan struct{})
	return &emptypb.Empty{}, nil
}

// RefuseCounters has the host's telemetry answer so many calls with an error.
func (p *Plugin) RefuseCounters(calls int) {
	p.metrics.mutex.Lock()
	defer p.metrics.mutex.Unlock()
	p.metrics.refuse = calls
}

// AwaitCounter waits until the plugin has told the host's telemetry of that many.
func (p *Plugin) AwaitCounter(t testing.TB, name string, value float32) {
	t.Helper()
	p.await(t, name, p.metrics.counters, func(got float32, is bool) bool { return is && got == value })
}

// AwaitFigure waits until the latest value of a gauge or a sample, a.b{c=d}, fits.
func (p *Plugin) AwaitFigure(t testing.TB, name string, fits func(float32) bool) {
	t.Helper()
	p.await(t, name, p.metrics.latest, func(got float32, is bool) bool { return is && fits(got) })
}

func (p *Plugin) await(t testing.TB, name string, figures map[string]float32, fits func(float32, bool) bool) {
	t.Helper()
	patience := time.After(time.Minute)
	for {
		p.metrics.mutex.Lock()
		got, is := figures[name]
		changed := p.metrics.changed
		p.metrics.mutex.Unlock()
		if fits(got, is) {
			return
		}
		select {
		case <-changed:
		case <-patience:
			t.Fatalf("%s is %v (told: %v), which is not what it should be", name, got, is)
		}
	}
}

func hostServices(agent bool, m *metrics) []pluginsdk.ServiceServer {
	all := []pluginsdk.ServiceServer{metricsv1.MetricsServiceServer(m)}
	if !agent {
		// no IdentityProvider: SPIRE has it for notifiers, which it is about to drop
		all = append(all, agentstorev1.AgentStoreServiceServer(agentStore{}))
	}
	return all
}

// broker is the host's half of a go-plugin plugin: it serves the host's services on the
// brokered listener and hands out the connection.
type broker struct {
	goplugin.NetRPCUnsupportedPlugin
	services []pluginsdk.ServiceServer
}

type brokered struct {
	conn *grpc.ClientConn
	end  func()
}

func (*broker) GRPCServer(*goplugin.GRPCBroker, *grpc.Server) error {
	return errors.New("the plugin's side is not ours")
}

func (b *broker) GRPCClient(_ context.Context, br *goplugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	listener, err := br.Accept(private.HostServiceProviderID)
	if err != nil {
		return nil, err
	}
	server := grpc.NewServer()
	for _, service := range b.services {
		service.RegisterServer(server)
	}
	go func() { _ = server.Serve(listener) }()
	return &brokered{conn: conn, end: server.Stop}, nil
}
