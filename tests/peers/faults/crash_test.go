package faults_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"
)

// The functions of PKCS#11 that are called, by what makes them be called.
var (
	opening    = []string{"C_Initialize", "C_GetInfo", "C_GetSlotList", "C_GetSlotInfo", "C_GetMechanismList", "C_GetMechanismInfo", "C_Login", "C_OpenSession"}
	signing    = []string{"C_SignInit", "C_Sign", "C_GetSessionInfo", "C_GetTokenInfo"}
	generating = []string{"C_FindObjectsInit", "C_FindObjects", "C_FindObjectsFinal", "C_GetAttributeValue", "C_GenerateKeyPair", "C_DestroyObject"}
	closing    = []string{"C_CloseSession", "C_Logout", "C_Finalize"}
	idle       = []string{"C_GenerateRandom"}
)

// What the source names is what is crashed and what fails: no function is forgotten here.
func TestEveryFunctionThatIsCalledFailsHere(t *testing.T) {
	sources, err := filepath.Glob("../../../hsm/*.c")
	if err != nil || len(sources) < 10 {
		t.Fatalf("%d files in hsm/: %v", len(sources), err)
	}
	called := map[string]bool{}
	for _, path := range sources {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range regexp.MustCompile(`\bC_[A-Z][a-z]\w+`).FindAllString(string(text), -1) {
			called[name] = true
		}
	}
	for _, name := range slices.Concat(opening, signing, generating, closing, idle) {
		if !called[name] {
			t.Errorf("%s fails here and is not called", name)
		}
		delete(called, name)
	}
	for name := range called {
		t.Errorf("%s is called and does not fail here", name)
	}
}

var ends = []string{"segv", "abort", "kill", "exit"}

// everyCrash of these functions, before and after the effect, at the 1st, 2nd and nth call;
// each of them by another end, by all of them in the long run.
func everyCrash(functions []string, nth int, each func(script string)) {
	for _, function := range functions {
		for i, when := range both {
			for j, n := range []int{1, 2, nth} {
				for k, end := range ends {
					if long || k == (i+j)%len(ends) {
						each(fmt.Sprintf("%s %d %s %s once shared", function, n, when, end))
					}
				}
			}
		}
	}
}

func TestACrashOfTheLibraryWhileItSignsAndGeneratesCostsNoCall(t *testing.T) {
	t.Parallel()
	for name, functions := range map[string][]string{"signing": signing, "generating": generating} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, group("1 crash while signing and generating"), "")
			everyCrash(functions, 7, func(script string) {
				s.suffer(fault{name: script, script: script, ends: true})
			})
			s.finish()
		})
	}
}

func TestACrashOfTheLibraryWhileItIsOpenedAgainCostsNoCall(t *testing.T) {
	t.Parallel()
	for half, functions := range [][]string{opening[:4], opening[4:]} {
		t.Run(fmt.Sprint(half), func(t *testing.T) {
			t.Parallel()
			s := newStage(t, group("1 crash while the token is opened"), "")
			everyCrash(functions, 3, func(script string) {
				s.suffer(fault{name: script, script: script, ends: true, provoke: s.kill})
			})
			s.finish()
		})
	}
}

func TestACrashOfTheLibraryDuringAReconfigurationCostsNoCall(t *testing.T) {
	t.Parallel()
	s := newStage(t, group("1 crash during a reconfiguration"), "")
	everyCrash(closing, 3, func(script string) {
		s.suffer(fault{name: script, script: script, provoke: s.configure, pace: time.Millisecond})
	})
	for _, function := range opening {
		script := function + " 1 after abort once shared"
		s.suffer(fault{name: script, script: script, provoke: s.configure, pace: time.Millisecond})
	}
	s.finish()
}

func TestACrashOfTheLibraryWhileNobodyCallsIsMended(t *testing.T) {
	t.Parallel()
	s := newStage(t, group("1 crash while idle"), "keep_alive = \"1s\"\n")
	everyCrash(idle, 3, func(script string) {
		s.load.Pause(true)
		s.suffer(fault{name: script, script: script, ends: true, after: func(s *stage) { s.load.Pause(false) }})
	})
	s.finish()
}
