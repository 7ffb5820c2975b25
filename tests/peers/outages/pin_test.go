package outages

import (
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"spire-hsm/peers/host"
	"spire-hsm/peers/load"
	"spire-hsm/peers/scene"
)

// counted is a script that leaves a line for each login, whatever comes of it.
const counted = "C_Login before sleep 0\n"

func (b *bench) expectLogins(t *testing.T, when string, want int) {
	t.Helper()
	if logins := b.module.FiredIn(t, "C_Login"); len(logins) != want {
		t.Errorf("%d logins %s, want %d: %v", len(logins), when, want, logins)
	}
}

func (b *bench) setPIN(t *testing.T, pin string) { scene.Write(t, b.PINFile, pin+"\n") }

// changePIN on the token, as its owner does.
func (b *bench) changePIN(t *testing.T, pin string) {
	t.Helper()
	b.Tool(t, "--change-pin", "--new-pin", pin)
	b.PIN = pin
}

func refused(t *testing.T, p *host.Plugin, data string) {
	t.Helper()
	start := time.Now()
	err := p.Configure(domain, data)
	expect(t, err, codes.FailedPrecondition, "PIN")
	if err != nil && strings.Contains(err.Error(), "9999") {
		t.Errorf("the PIN is in the error: %v", err)
	}
	if _, found := p.Logs.Find("9999"); found {
		t.Error("the PIN is in the log")
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("a wrong PIN took %v: it is not worth waiting for", took)
	}
}

func TestAWrongPINIsTriedOnceUntilItsFileChanges(t *testing.T) {
	t.Parallel()
	faults(t, 5)
	b := newFaulty(t, "", counted)
	b.setPIN(t, "9999")
	p := b.Start(t)
	refused(t, p, b.Data)
	b.expectLogins(t, "at the first Configure", 1)
	refused(t, p, b.Data)
	b.expectLogins(t, "at another Configure", 1)
	unload(t, p)
	for range 2 { // a server that is restarted by systemd
		p = b.Start(t)
		refused(t, p, b.Data)
		unload(t, p)
	}
	b.expectLogins(t, "after restarts", 1)
	b.setPIN(t, "9998")
	p = b.Start(t)
	refused(t, p, b.Data)
	refused(t, p, b.Data)
	b.expectLogins(t, "with another wrong PIN", 2)
	b.setPIN(t, b.PIN)
	scene.Must(t, p.Configure(domain, b.Data))
	scene.Sign(t, p, scene.Generate(t, p, "x509-CA-A", p256))
	b.expectLogins(t, "with the right one", 3)
}

func TestALockedPINIsNotTriedAgain(t *testing.T) {
	t.Parallel()
	for _, answer := range []string{"CKR_PIN_LOCKED", "CKR_PIN_LEN_RANGE", "CKR_PIN_INVALID"} {
		t.Run(answer, func(t *testing.T) {
			faults(t, 1)
			b := newFaulty(t, "", "C_Login before "+answer+"\n")
			p := b.Start(t)
			expect(t, p.Configure(domain, b.Data), codes.FailedPrecondition, answer)
			unload(t, p)
			for range 2 {
				p = b.Start(t)
				refused(t, p, b.Data)
				unload(t, p)
			}
			b.expectLogins(t, "over three starts", 1)
		})
	}
}

// What the token says of its PIN before anyone tries it: one try left, or none.
func TestTheLastTryOfAPINIsNotOursToTake(t *testing.T) {
	t.Parallel()
	for flag, text := range map[string]string{"0x20000": "one PIN try left", "0x40000": "user PIN is locked"} {
		faults(t, 2)
		b := newFaulty(t, `call_timeout = "2s"`, counted+"profile token-flags "+flag+"\n")
		p := b.Start(t)
		for range 2 {
			expect(t, p.Configure(domain, b.Data), codes.FailedPrecondition, text)
		}
		b.expectLogins(t, "in all", 0)

		b.module.Play(t, counted) // its owner has logged in once
		scene.Must(t, p.Configure(domain, b.Data))
		key := scene.Generate(t, p, "x509-CA-A", p256)
		b.module.Play(t, "%s", counted+"profile token-flags "+flag+"\n")
		scene.Sign(t, p, key) // who is logged in stays so
		before := len(b.module.FiredIn(t, "C_Login"))
		p.KillWorkers()
		expect(t, load.Sign(p, key), codes.Unavailable, text)
		b.expectLogins(t, "while the token warns", before)
		b.module.Play(t, counted)
		scene.Eventually(t, "it signs again", func() bool { return load.Sign(p, key) == nil })
		b.expectLogins(t, "in all", before+1)
	}
}

func TestAPINThatIsChangedWhileWeRunCostsNoCallIfItsFileFollows(t *testing.T) {
	t.Parallel()
	b := newFaulty(t, "", counted)
	b.changeWhileRunning(t, b.Ready(t))
}

// Without an identity file nothing beside it says that a PIN was refused.
func TestSoDoesOneThatThePinSourceOfTheURINames(t *testing.T) {
	t.Parallel()
	b := newFaulty(t, "", counted)
	b.Data = strings.Replace(b.Data, "pin_file = \""+b.PINFile+"\"", "", 1)
	b.Data = strings.Replace(b.Data, "token=spire", "token=spire?pin-source=file:"+b.PINFile, 1)
	b.takeValue()
	b.changeWhileRunning(t, b.readyOn(t, "host"))
}

func (b *bench) changeWhileRunning(t *testing.T, p *host.Plugin) {
	faults(t, 1)
	_, l := scene.Work(t, p, 4)
	b.changePIN(t, "4321")
	l.Await(100) // who is logged in stays so
	b.expectLogins(t, "before the worker died", 1)
	p.KillWorkers()
	p.Logs.Wait(t, "was refused")
	time.Sleep(3 * time.Second) // the file follows late
	b.expectLogins(t, "with the old PIN", 2)
	b.setPIN(t, b.PIN)
	l.Await(100)
	scene.Generate(t, p, "x509-CA-B", p256)
	l.EndWithoutFailures()
	b.expectLogins(t, "in all", 3)
}

func TestAPINThatIsChangedForGoodFailsCallsWithTheReason(t *testing.T) {
	t.Parallel()
	faults(t, 1)
	b := newFaulty(t, `call_timeout = "2s"`, counted)
	p, _, l := b.Busy(t, 4)
	b.changePIN(t, "4321")
	p.KillWorkers()
	p.Logs.Wait(t, "was refused")
	time.Sleep(5 * time.Second) // calls are to run out of time
	_, err := load.Generate(p, "x509-CA-B", p256)
	expect(t, err, codes.Unavailable, "PIN")
	b.expectLogins(t, "with the old PIN", 2)
	expectEnds(t, p, 2) // that was killed and that was refused; to look at the file is no event
	b.setPIN(t, b.PIN)
	l.Await(100)
	l.EndFailing("was refused", codes.Unavailable)
	b.expectLogins(t, "in all", 3)
}

func TestAPINFileThatAppearsLateIsWaitedFor(t *testing.T) {
	t.Parallel()
	faults(t, 1)
	b := newFaulty(t, "", counted)
	scene.Must(t, os.Remove(b.PINFile))
	p := b.Start(t)
	configured := make(chan error, 1)
	go func() { configured <- p.Configure(domain, b.Data) }()
	select {
	case err := <-configured:
		t.Fatalf("Configure did not wait: %v", err)
	case <-time.After(pause):
	}
	b.setPIN(t, b.PIN)
	scene.Must(t, <-configured)
	scene.Generate(t, p, "x509-CA-A", p256)
	b.expectLogins(t, "in all", 1)
}

func TestAPINFileThatNeverAppearsIsNamed(t *testing.T) {
	t.Parallel()
	faults(t, 1)
	b := newFaulty(t, `startup_wait = "1s"`, counted)
	scene.Must(t, os.Remove(b.PINFile))
	p := b.Start(t)
	expect(t, p.Configure(domain, b.Data), codes.Unavailable, "PIN file "+b.PINFile, "No such file")
	b.expectLogins(t, "without a PIN", 0)
}

// It is read at each login only, so its absence is nothing to a worker that is logged in.
func TestAPINFileThatVanishesWhileWeRunIsWaitedForAtTheNextLogin(t *testing.T) {
	t.Parallel()
	faults(t, 1)
	b := newFaulty(t, "", counted)
	p, _, l := b.Busy(t, 4)
	scene.Must(t, os.Remove(b.PINFile))
	l.Await(50)
	p.KillWorkers()
	time.Sleep(pause)
	b.setPIN(t, b.PIN)
	l.Await(100)
	l.EndWithoutFailures()
	b.expectLogins(t, "in all", 2)
}

func TestARefusedPINDoesNotStopTheWorkerThatIsLoggedIn(t *testing.T) {
	t.Parallel()
	faults(t, 1)
	b := newFaulty(t, "", counted)
	p, _, l := b.Busy(t, 4)
	b.setPIN(t, "9999")
	refused(t, p, b.Data)
	l.Await(100)
	b.setPIN(t, b.PIN)
	scene.Must(t, p.Configure(domain, b.Data))
	l.Await(100)
	l.EndWithoutFailures()
	b.expectLogins(t, "in all", 3)
}
