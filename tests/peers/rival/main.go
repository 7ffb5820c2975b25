// Rival is the KeyManager that one writes in an afternoon: SPIRE's SDK, crypto11, the vendor's
// library in the plugin's own process. It is here to be measured beside ours (make bench), and does
// nothing about a token that fails. It takes our plugin_data, as far as it has a use for it.
//
// A module of its own: only make bench needs its libraries.
package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/ThalesGroup/crypto11"
	"github.com/hashicorp/hcl"
	"github.com/spiffe/spire-plugin-sdk/pluginmain"
	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const labelPrefix = "rival-"

type configuration struct {
	Module  string `hcl:"module"`
	Token   string `hcl:"token"`
	PINFile string `hcl:"pin_file"`
	Verify  string `hcl:"verify_signatures"`
}

type key struct {
	signer crypto11.Signer
	public *keymanagerv1.PublicKey
}

type plugin struct {
	keymanagerv1.UnimplementedKeyManagerServer
	configv1.UnimplementedConfigServer

	mutex  sync.RWMutex
	token  *crypto11.Context
	verify bool
	keys   map[string]key
}

func main() {
	p := &plugin{}
	pluginmain.Serve(keymanagerv1.KeyManagerPluginServer(p), configv1.ConfigServiceServer(p))
}

// ---- configuration ----

func (p *plugin) Configure(_ context.Context, request *configv1.ConfigureRequest) (*configv1.ConfigureResponse, error) {
	var config configuration
	if err := hcl.Decode(&config, request.HclConfiguration); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "configuration: %v", err)
	}
	pin, err := os.ReadFile(config.PINFile)
	if err != nil {
		return nil, status.Errorf(codes.Unavailable, "PIN: %v", err)
	}
	token, err := crypto11.Configure(&crypto11.Config{
		Path: config.Module, TokenLabel: strings.TrimPrefix(config.Token, "pkcs11:token="),
		Pin: strings.TrimSpace(string(pin)),
	})
	if err != nil {
		return nil, status.Errorf(codes.Unavailable, "token: %v", err)
	}
	keys, err := load(token)
	if err != nil {
		return nil, status.Errorf(codes.Unavailable, "keys: %v", err)
	}
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.token, p.keys, p.verify = token, keys, config.Verify == "always"
	return &configv1.ConfigureResponse{}, nil
}

// load the keys of ours that are on the token.
func load(token *crypto11.Context) (map[string]key, error) {
	signers, err := token.FindAllKeyPairs()
	if err != nil {
		return nil, err
	}
	keys := map[string]key{}
	for _, signer := range signers {
		label, err := token.GetAttribute(signer, crypto11.CkaLabel)
		if err != nil {
			return nil, err
		}
		id, ours := strings.CutPrefix(string(label.Value), labelPrefix)
		if !ours {
			continue
		}
		if keys[id], err = describe(id, signer); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

func describe(id string, signer crypto11.Signer) (key, error) {
	pkix, err := x509.MarshalPKIXPublicKey(signer.Public())
	if err != nil {
		return key{}, err
	}
	print := sha256.Sum256(pkix)
	return key{signer, &keymanagerv1.PublicKey{
		Id: id, Type: typeOf(signer.Public()), PkixData: pkix, Fingerprint: hex.EncodeToString(print[:]),
	}}, nil
}

func typeOf(public crypto.PublicKey) keymanagerv1.KeyType {
	switch public := public.(type) {
	case *ecdsa.PublicKey:
		if public.Curve == elliptic.P384() {
			return keymanagerv1.KeyType_EC_P384
		}
		return keymanagerv1.KeyType_EC_P256
	case *rsa.PublicKey:
		if public.Size() == 512 {
			return keymanagerv1.KeyType_RSA_4096
		}
		return keymanagerv1.KeyType_RSA_2048
	}
	return keymanagerv1.KeyType_UNSPECIFIED_KEY_TYPE
}

// ---- keys ----

func (p *plugin) GenerateKey(_ context.Context, request *keymanagerv1.GenerateKeyRequest) (*keymanagerv1.GenerateKeyResponse, error) {
	p.mutex.RLock()
	token, old := p.token, p.keys[request.KeyId]
	p.mutex.RUnlock()
	signer, err := generate(token, request.KeyType, []byte(labelPrefix+request.KeyId))
	if err != nil {
		return nil, status.Errorf(codes.Unavailable, "token: %v", err)
	}
	made, err := describe(request.KeyId, signer)
	if err != nil {
		return nil, status.Errorf(codes.Internal, "public key: %v", err)
	}
	p.mutex.Lock()
	p.keys[request.KeyId] = made
	p.mutex.Unlock()
	if old.signer != nil {
		_ = old.signer.Delete()
	}
	return &keymanagerv1.GenerateKeyResponse{PublicKey: made.public}, nil
}

func generate(token *crypto11.Context, keyType keymanagerv1.KeyType, label []byte) (crypto11.Signer, error) {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return nil, err
	}
	switch keyType {
	case keymanagerv1.KeyType_EC_P256:
		return token.GenerateECDSAKeyPairWithLabel(id, label, elliptic.P256())
	case keymanagerv1.KeyType_EC_P384:
		return token.GenerateECDSAKeyPairWithLabel(id, label, elliptic.P384())
	case keymanagerv1.KeyType_RSA_2048:
		return token.GenerateRSAKeyPairWithLabel(id, label, 2048)
	case keymanagerv1.KeyType_RSA_4096:
		return token.GenerateRSAKeyPairWithLabel(id, label, 4096)
	}
	return nil, status.Errorf(codes.InvalidArgument, "key type %v", keyType)
}

func (p *plugin) find(id string) (found key, verify, known bool) {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	found, known = p.keys[id]
	return found, p.verify, known
}

func (p *plugin) GetPublicKey(_ context.Context, request *keymanagerv1.GetPublicKeyRequest) (*keymanagerv1.GetPublicKeyResponse, error) {
	found, _, _ := p.find(request.KeyId)
	return &keymanagerv1.GetPublicKeyResponse{PublicKey: found.public}, nil
}

func (p *plugin) GetPublicKeys(context.Context, *keymanagerv1.GetPublicKeysRequest) (*keymanagerv1.GetPublicKeysResponse, error) {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	response := &keymanagerv1.GetPublicKeysResponse{}
	for _, key := range p.keys {
		response.PublicKeys = append(response.PublicKeys, key.public)
	}
	slices.SortFunc(response.PublicKeys, func(a, b *keymanagerv1.PublicKey) int { return strings.Compare(a.Id, b.Id) })
	return response, nil
}

// ---- signatures ----

var hashes = map[keymanagerv1.HashAlgorithm]crypto.Hash{
	keymanagerv1.HashAlgorithm_SHA224:     crypto.SHA224,
	keymanagerv1.HashAlgorithm_SHA256:     crypto.SHA256,
	keymanagerv1.HashAlgorithm_SHA384:     crypto.SHA384,
	keymanagerv1.HashAlgorithm_SHA512:     crypto.SHA512,
	keymanagerv1.HashAlgorithm_SHA3_224:   crypto.SHA3_224,
	keymanagerv1.HashAlgorithm_SHA3_256:   crypto.SHA3_256,
	keymanagerv1.HashAlgorithm_SHA3_384:   crypto.SHA3_384,
	keymanagerv1.HashAlgorithm_SHA3_512:   crypto.SHA3_512,
	keymanagerv1.HashAlgorithm_SHA512_224: crypto.SHA512_224,
	keymanagerv1.HashAlgorithm_SHA512_256: crypto.SHA512_256,
}

func options(request *keymanagerv1.SignDataRequest) crypto.SignerOpts {
	if pss := request.GetPssOptions(); pss != nil {
		return &rsa.PSSOptions{SaltLength: int(pss.SaltLength), Hash: hashes[pss.HashAlgorithm]}
	}
	return hashes[request.GetHashAlgorithm()]
}

func (p *plugin) SignData(_ context.Context, request *keymanagerv1.SignDataRequest) (*keymanagerv1.SignDataResponse, error) {
	found, verify, known := p.find(request.KeyId)
	if !known {
		return nil, status.Errorf(codes.NotFound, "no key %q", request.KeyId)
	}
	opts := options(request)
	signature, err := found.signer.Sign(rand.Reader, request.Data, opts)
	if err != nil {
		return nil, status.Errorf(codes.Unavailable, "token: %v", err)
	}
	if verify && !verified(found.signer.Public(), request.Data, signature, opts) {
		return nil, status.Error(codes.Internal, "the token's signature is wrong")
	}
	return &keymanagerv1.SignDataResponse{Signature: signature, KeyFingerprint: found.public.Fingerprint}, nil
}

func verified(public crypto.PublicKey, digest, signature []byte, opts crypto.SignerOpts) bool {
	if public, ec := public.(*ecdsa.PublicKey); ec {
		return ecdsa.VerifyASN1(public, digest, signature)
	}
	if pss, ok := opts.(*rsa.PSSOptions); ok {
		return rsa.VerifyPSS(public.(*rsa.PublicKey), opts.HashFunc(), digest, signature, pss) == nil
	}
	return rsa.VerifyPKCS1v15(public.(*rsa.PublicKey), opts.HashFunc(), digest, signature) == nil
}
