package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"
)

var (
	want = expected{issuer: "https://i", audience: "mys3", subject: "spiffe://td/w"}
	now  = time.Unix(1000, 0)
	text = base64.RawURLEncoding.EncodeToString
)

const good = `{"iss":"https://i","aud":["x","mys3"],"sub":"spiffe://td/w","exp":1001}`

func sign(t *testing.T, key crypto.Signer, alg, kid, payload string) string {
	t.Helper()
	signed := text(fmt.Appendf(nil, `{"alg":%q,"kid":%q}`, alg, kid)) + "." + text([]byte(payload))
	algorithm := algorithms[alg]
	if algorithm.hash == 0 {
		return signed + "."
	}
	hash := algorithm.hash.New()
	hash.Write([]byte(signed))
	if key, ok := key.(*ecdsa.PrivateKey); ok {
		r, s, err := ecdsa.Sign(rand.Reader, key, hash.Sum(nil))
		if err != nil {
			t.Fatal(err)
		}
		half := (key.Params().BitSize + 7) / 8
		signature := make([]byte, 2*half)
		r.FillBytes(signature[:half])
		s.FillBytes(signature[half:])
		return signed + "." + text(signature)
	}
	signature, err := key.Sign(rand.Reader, hash.Sum(nil), algorithm.hash)
	if err != nil {
		t.Fatal(err)
	}
	return signed + "." + text(signature)
}

func ecKey(t *testing.T, kid, crv string) (*ecdsa.PrivateKey, jwk) {
	t.Helper()
	key, err := ecdsa.GenerateKey(curves[crv], rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	half := (key.Params().BitSize + 7) / 8
	return key, jwk{Kty: "EC", Kid: kid, Crv: crv,
		X: text(key.X.FillBytes(make([]byte, half))), Y: text(key.Y.FillBytes(make([]byte, half)))}
}

func rsaKey(t *testing.T, kid string) (*rsa.PrivateKey, jwk) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key, jwk{Kty: "RSA", Kid: kid, N: text(key.N.Bytes()), E: text(big.NewInt(int64(key.E)).Bytes())}
}

func TestGoodTokensOfAllThreeAlgorithmsVerify(t *testing.T) {
	p256, jwk256 := ecKey(t, "a", "P-256")
	p384, jwk384 := ecKey(t, "b", "P-384")
	r, jwkRSA := rsaKey(t, "c")
	keys := []jwk{jwk256, jwk384, jwkRSA}
	for _, token := range []string{
		sign(t, p256, "ES256", "a", good), sign(t, p384, "ES384", "b", good), sign(t, r, "RS256", "c", good),
	} {
		if _, _, err := verify(keys, token, want, now); err != nil {
			t.Error(err)
		}
	}
}

func TestWhatIsWrongWithATokenIsSeen(t *testing.T) {
	key, public := ecKey(t, "a", "P-256")
	other, _ := ecKey(t, "a", "P-256")
	r, publicRSA := rsaKey(t, "r")
	token := sign(t, key, "ES256", "a", good)
	parts := strings.Split(token, ".")
	forged := parts[0] + "." + text([]byte(strings.Replace(good, "/w", "/x", 1))) + "." + parts[2]
	claim := func(from, to string) string {
		return sign(t, key, "ES256", "a", strings.Replace(good, from, to, 1))
	}
	for name, c := range map[string]struct{ token, says string }{
		"tampered claims":    {forged, "signature is wrong"},
		"another key":        {sign(t, other, "ES256", "a", good), "signature is wrong"},
		"an unknown kid":     {sign(t, key, "ES256", "z", good), "no key with kid"},
		"no kid":             {sign(t, key, "ES256", "", good), "no key with kid"},
		"alg none":           {sign(t, key, "none", "a", good), "alg"},
		"alg of another key": {sign(t, r, "RS256", "a", good), "alg RS256 with a EC"},
		"an expired token":   {claim("1001", "1000"), "expired"},
		"another issuer":     {claim("https://i", "https://j"), "iss"},
		"another audience":   {claim("mys3", "mys4"), "aud"},
		"another subject":    {claim("/w", "/x"), "sub"},
		"a cut token":        {parts[0] + "." + parts[1], "3 parts"},
		"a short signature":  {parts[0] + "." + parts[1] + ".AAAA", "bytes"},
	} {
		_, _, err := verify([]jwk{public, publicRSA}, c.token, want, now)
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, expected %q", name, err, c.says)
		}
	}
}

func TestTheAudienceMayBeOneString(t *testing.T) {
	key, public := ecKey(t, "a", "P-256")
	token := sign(t, key, "ES256", "a", strings.Replace(good, `["x","mys3"]`, `"mys3"`, 1))
	if _, _, err := verify([]jwk{public}, token, want, now); err != nil {
		t.Error(err)
	}
}
