package outages

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"spire-hsm/peers/host"
	"spire-hsm/peers/load"
	"spire-hsm/peers/scene"
	"spire-hsm/peers/softhsm"
)

const pause = 3 * time.Second // of a token, that nobody is to notice

func (b *bench) takeAway(t *testing.T) { scene.Must(t, os.Rename(b.Tokens, b.Tokens+".away")) }

func (b *bench) bringBack(t *testing.T) { scene.Must(t, os.Rename(b.Tokens+".away", b.Tokens)) }

func TestATokenThatIsAwayForThreeSecondsCostsNoCall(t *testing.T) {
	t.Parallel()
	times := either(2, 20)
	faults(t, times)
	b := newBench(t, "")
	_, _, l := b.Busy(t, 8)
	l.Rotate("JWT-Signer-A")
	l.Rotate("JWT-Signer-B")
	for range times {
		b.takeAway(t)
		time.Sleep(pause)
		b.bringBack(t)
		l.Await(200)
	}
	l.EndWithoutFailures()
	b.expectPairs(t, 3)
}

func TestATokenThatIsAwayForLongerThanCallsMayTakeFailsThemWithTheReason(t *testing.T) {
	t.Parallel()
	faults(t, 1)
	b := newBench(t, `call_timeout = "2s"`)
	p, key, l := b.Busy(t, 4)
	b.takeAway(t)
	time.Sleep(pause)
	_, err := load.Generate(p, "x509-CA-B", p256)
	expect(t, err, codes.Unavailable, "away")
	b.bringBack(t)
	l.Await(200)
	l.EndFailing("the token is away", codes.Unavailable)
	if found := served(t, p); found[key.Id] == nil {
		t.Errorf("served: %v", found)
	}
	scene.Eventually(t, "a key is made", func() bool {
		_, err := load.Generate(p, "x509-CA-B", p256)
		return err == nil
	})
	b.expectPairs(t, 2)
}

// ---- a network HSM: p11-kit's server before SoftHSM ----

const remoteModule = "/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so"

type remote struct {
	*bench
	server *scene.Daemon
	t      *testing.T
	socket string
}

func newRemote(t *testing.T, more string) *remote {
	t.Helper()
	if _, err := os.Stat(remoteModule); err != nil {
		t.Skip("no p11-kit-client.so")
	}
	dir, err := os.MkdirTemp("/tmp", "outages") // socket paths have 108 bytes
	scene.Must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	b := newBench(t, more)
	b.Data = strings.Replace(b.Data, softhsm.Module(), remoteModule, 1)
	r := &remote{bench: b, t: t, socket: filepath.Join(dir, "hsm")}
	// the plugin speaks to the server, not to SoftHSM
	b.Environ = []string{"P11_KIT_SERVER_ADDRESS=unix:path=" + r.socket, "SOFTHSM2_CONF=/nonexistent"}
	r.serve()
	return r
}

func (r *remote) serve() {
	r.t.Helper()
	_ = os.Remove(r.socket)
	r.server = scene.Launch(r.t, r.Env(), nil, "p11-kit", "server", "-f", "-n", r.socket,
		"--provider", softhsm.Module(), "pkcs11:token="+r.Label)
	scene.Eventually(r.t, "p11-kit server listens", func() bool { return scene.Listens(r.socket) })
}

// signal the server and its child for each connection.
func (r *remote) signal(signal syscall.Signal) {
	r.t.Helper()
	for _, pid := range family(r.t, r.server.Process.Pid) {
		_ = syscall.Kill(pid, signal)
	}
}

func (r *remote) die() {
	r.t.Helper()
	r.signal(syscall.SIGKILL)
	<-r.server.Done
}

func (r *remote) freeze(length time.Duration) {
	r.t.Helper()
	frozen := family(r.t, r.server.Process.Pid)
	for _, pid := range frozen {
		scene.Must(r.t, syscall.Kill(pid, syscall.SIGSTOP))
	}
	time.Sleep(length)
	for _, pid := range frozen {
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}
}

func TestANetworkHSMThatIsKilledAndRestartedCostsNoCall(t *testing.T) {
	t.Parallel()
	deaths := either(4, 30)
	faults(t, deaths)
	r := newRemote(t, "")
	_, _, l := r.Busy(t, 8)
	l.Rotate("x509-CA-B")
	for i := range deaths {
		r.die()
		if i%2 == 1 {
			time.Sleep(time.Second) // it takes a while to come back
		}
		r.serve()
		l.Await(200)
	}
	l.EndWithoutFailures()
	r.expectPairs(t, 2)
}

func TestANetworkHSMThatIsFrozenForThreeSecondsCostsNoCall(t *testing.T) {
	t.Parallel()
	faults(t, 1)
	r := newRemote(t, "")
	p, _, l := r.Busy(t, 8)
	made := make(chan error, 1)
	go func() {
		time.Sleep(pause / 2) // in the middle of it
		_, err := load.Generate(p, "x509-CA-B", p256)
		made <- err
	}()
	r.freeze(pause)
	scene.Must(t, <-made)
	l.Await(200)
	l.EndWithoutFailures()
	expectEnds(t, p, 0)
}

func TestANetworkHSMThatIsFrozenForAMinuteFailsCallsInTimeAndIsFoundAgain(t *testing.T) {
	t.Parallel()
	faults(t, 1)
	r := newRemote(t, "")
	p, key, l := r.Busy(t, 4)
	stop := make(chan struct{})
	slowest := make(chan time.Duration, 1)
	go func() {
		var most time.Duration
		for {
			select {
			case <-stop:
				slowest <- most
				return
			default:
			}
			start := time.Now()
			_ = load.Sign(p, key)
			most = max(most, time.Since(start))
		}
	}()
	r.freeze(time.Minute)
	l.Await(200)
	close(stop)
	if most := <-slowest; most >= load.Patience {
		t.Errorf("a call took %v: SPIRE has given it up", most)
	}
	l.EndFailing("", codes.Unavailable, codes.DeadlineExceeded)
}

// ---- sessions ----

// killedOnATokenWithFewSessions: those of a dead process count for a while longer.
func killedOnATokenWithFewSessions(t *testing.T, profile string) {
	t.Helper()
	t.Parallel()
	kills := either(2, 10)
	faults(t, kills)
	b := newFaulty(t, "max_sessions = 4", profile)
	_, _, l := b.Busy(t, 8)
	l.KillWorkers(kills, 100)
	l.EndWithoutFailures()
}

// Each worker has 5 of 8: the next one finds too few until then.
func TestSessionsOfKilledWorkersThatStillCountCostNoCall(t *testing.T) {
	killedOnATokenWithFewSessions(t, "profile dangling 8 5\n")
}

// All 5 of 5 are a dead process's.
func TestASessionLimitThatKilledWorkersUseUpCostsNoCall(t *testing.T) {
	killedOnATokenWithFewSessions(t, "profile dangling 5 4\n")
}

// One session for logging in is left over by somebody else, and none to work with.
func TestATokenWithOneSessionLeftIsWaitedFor(t *testing.T) {
	t.Parallel()
	faults(t, 1)
	b := newFaulty(t, "max_sessions = 4", "profile dangling 6 4\n")
	p, _, l := b.Busy(t, 8)
	p.KillWorkers()
	l.Await(100)
	_, err := load.Generate(p, "x509-CA-B", p256)
	scene.Must(t, err)
	l.EndWithoutFailures()
}

func TestFewerSessionsThanWantedWillDo(t *testing.T) {
	t.Parallel()
	faults(t, 1)
	b := newFaulty(t, "max_sessions = 16", "profile sessions 3\n")
	p, _, l := b.Busy(t, 8)
	l.Await(200)
	scene.Generate(t, p, "x509-CA-B", p256)
	l.EndWithoutFailures()
	expectEnds(t, p, 0)
}

// Nobody is logged in any more, and searches find nothing, with CKR_OK.
func TestASilentLogoutLosesNoKeyAndCostsNoCall(t *testing.T) {
	t.Parallel()
	times := either(10, 100)
	faults(t, times)
	b := newFaulty(t, "", "")
	p, _, l := b.Busy(t, 8)
	for i := range times {
		b.module.Play(t, "profile logout # %d\n", i)
		l.Await(100)
		scene.Generate(t, p, "x509-CA-B", p256)
	}
	l.EndWithoutFailures()
	b.expectPairs(t, 2)
	unload(t, p)
	b.module.Play(t, "profile logout\n")
	p = b.Ready(t)
	if found := served(t, p); len(found) != 2 {
		t.Errorf("served after a restart: %v", found)
	}
}

func idleTest(t *testing.T, profile, options string, idle time.Duration, rounds int) *host.Plugin {
	t.Helper()
	faults(t, rounds)
	b := newFaulty(t, options, profile)
	p := b.Ready(t)
	key := scene.Generate(t, p, "x509-CA-A", p256)
	failed := 0
	for range rounds {
		time.Sleep(idle)
		if err := load.Sign(p, key); err != nil {
			failed++
			t.Error(err)
		}
		if _, err := load.Generate(p, "x509-CA-B", p256); err != nil {
			failed++
			t.Error(err)
		}
	}
	t.Logf("%d times idle for %v, %d failed calls", rounds, idle, failed)
	return p
}

func TestSessionsThatWereClosedForIdlenessCostNoCall(t *testing.T) {
	t.Parallel()
	idleTest(t, "profile idle 1500\n", `keep_alive = "0"`, 2*time.Second, either(3, 10))
}

func TestKeepAliveKeepsSessionsAlive(t *testing.T) {
	t.Parallel()
	p := idleTest(t, "profile idle 3000\n", `keep_alive = "1s"`, 5*time.Second, 2)
	expectEnds(t, p, 0)
}

func TestAYubiHSMsThirtySecondsOfIdlenessCostNoCall(t *testing.T) {
	t.Parallel()
	idleTest(t, "profile yubihsm\n", "cka_id_length = 2\nlabel_max = 40\nkeep_alive = \"0\"", 35*time.Second, either(1, 3))
}

// A client of an HSM group whose members are dead may take that long. LONG=1, as it is waited for.
func TestALibraryThatTakesMoreThanAMinuteToComeUpIsWaitedFor(t *testing.T) {
	if !long {
		t.Skip("LONG=1 is not set")
	}
	t.Parallel()
	faults(t, 1)
	b := newFaulty(t, "startup_wait = \"150s\"\n", "C_Initialize before sleep 65000 once shared")
	p := b.Ready(t)
	if ends := p.Ends(); len(ends) != 0 {
		t.Errorf("%d workers were ended before one was let come up: %v", len(ends), ends)
	}
	scene.Sign(t, p, scene.Generate(t, p, "x509-CA-A", p256))
}
