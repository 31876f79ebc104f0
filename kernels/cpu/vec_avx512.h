// Sixteen floats in one AVX-512 register. Included by one translation unit only, inside its
// anonymous namespace.

constexpr int64_t kTileRows = 6;
constexpr int64_t kTilePanels = 4;
constexpr int64_t kHeadTile = 8;

struct Vec {
  __m512 v;
};

inline Vec vec_zero() {
  return {_mm512_setzero_ps()};
}

inline Vec vec_set(float value) {
  return {_mm512_set1_ps(value)};
}

inline Vec vec_load(const float* p) {
  return {_mm512_loadu_ps(p)};
}

inline void vec_store(float* p, Vec a) {
  _mm512_storeu_ps(p, a.v);
}

inline Vec vec_fma(Vec a, Vec b, Vec c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}

inline Vec vec_add(Vec a, Vec b) {
  return {_mm512_add_ps(a.v, b.v)};
}

inline Vec vec_mul(Vec a, Vec b) {
  return {_mm512_mul_ps(a.v, b.v)};
}

inline Vec vec_div(Vec a, Vec b) {
  return {_mm512_div_ps(a.v, b.v)};
}

inline float vec_sum(Vec a) {
  const __m256 low = _mm512_castps512_ps256(a.v);
  const __m256 high = _mm512_extractf32x8_ps(a.v, 1);
  const __m256 eight = _mm256_add_ps(low, high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline float vec_max(Vec a) {
  return _mm512_reduce_max_ps(a.v);
}

/// 2^n * p(r) with x = n ln 2 + r; within 2 units in the last place, and 0 where the result would
/// be subnormal: multiplying by those takes a processor many times as long, and most weights of a
/// sharp softmax are such. The order of operands keeps NaN.
inline Vec vec_exp(Vec a) {
  const __mmask16 is_normal = _mm512_cmp_ps_mask(a.v, _mm512_set1_ps(-87.0F), _CMP_NLT_UQ);
  __m512 x = _mm512_max_ps(_mm512_set1_ps(-87.0F), a.v);
  x = _mm512_min_ps(_mm512_set1_ps(89.0F), x);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504F)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375F), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4F), r);
  __m512 p = _mm512_set1_ps(1.0F / 5040.0F);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0F / 720.0F));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0F / 120.0F));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0F / 24.0F));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0F / 6.0F));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5F));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0F));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0F));
  return {_mm512_maskz_scalef_ps(is_normal, p, n)};
}

inline Vec vec_load_bf16(const uint16_t* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}

inline void vec_store_bf16(uint16_t* p, Vec a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, bias), 16);
  const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i result = _mm512_mask_mov_epi32(rounded, is_nan, quiet);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(result));
}

/// E4M3 codes as value / 256: sign, exponent and mantissa placed in a half, whose exponent bias is
/// 8 larger; subnormal codes become subnormal halves, which convert exactly.
inline Vec vec_load_e4m3(const uint8_t* p) {
  const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m256i wide = _mm256_slli_epi16(_mm256_cvtepi8_epi16(codes), 7);
  const __m256i half = _mm256_and_si256(wide, _mm256_set1_epi16(static_cast<int16_t>(0xbf80)));
  return {_mm512_cvtph_ps(half)};
}

inline void vec_load_e4m3_pair(const uint8_t* p, Vec* a, Vec* b) {
  const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m512i wide = _mm512_slli_epi16(_mm512_cvtepi8_epi16(codes), 7);
  const __m512i half = _mm512_and_si512(wide, _mm512_set1_epi16(static_cast<int16_t>(0xbf80)));
  a->v = _mm512_cvtph_ps(_mm512_castsi512_si256(half));
  b->v = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(half, 1));
}
