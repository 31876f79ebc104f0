// Sixteen floats in plain C++: what every compiler can vectorise for the baseline machine.
// Included by one translation unit only, inside its anonymous namespace.

constexpr int64_t kTileRows = 4;
constexpr int64_t kTilePanels = 1;
constexpr int64_t kHeadTile = 1;

struct Vec {
  float lane[16];
};

inline Vec vec_zero() {
  return Vec{};
}

inline Vec vec_set(float value) {
  Vec r;
  for (float& lane : r.lane) {
    lane = value;
  }
  return r;
}

inline Vec vec_load(const float* p) {
  Vec r;
  for (int i = 0; i < 16; ++i) {
    r.lane[i] = p[i];
  }
  return r;
}

inline void vec_store(float* p, Vec a) {
  for (int i = 0; i < 16; ++i) {
    p[i] = a.lane[i];
  }
}

inline Vec vec_fma(Vec a, Vec b, Vec c) {
  for (int i = 0; i < 16; ++i) {
    c.lane[i] += a.lane[i] * b.lane[i];
  }
  return c;
}

inline Vec vec_add(Vec a, Vec b) {
  for (int i = 0; i < 16; ++i) {
    a.lane[i] += b.lane[i];
  }
  return a;
}

inline Vec vec_mul(Vec a, Vec b) {
  for (int i = 0; i < 16; ++i) {
    a.lane[i] *= b.lane[i];
  }
  return a;
}

inline Vec vec_div(Vec a, Vec b) {
  for (int i = 0; i < 16; ++i) {
    a.lane[i] /= b.lane[i];
  }
  return a;
}

inline float vec_sum(Vec a) {
  for (int width = 8; width >= 1; width /= 2) {
    for (int i = 0; i < width; ++i) {
      a.lane[i] += a.lane[i + width];
    }
  }
  return a.lane[0];
}

inline float vec_max(Vec a) {
  float best = a.lane[0];
  for (int i = 1; i < 16; ++i) {
    best = a.lane[i] > best ? a.lane[i] : best;
  }
  return best;
}

/// 0 where the result would be subnormal: see vec_avx512.h.
inline Vec vec_exp(Vec a) {
  for (float& lane : a.lane) {
    lane = lane < -87.0F ? 0.0F : __builtin_expf(lane);
  }
  return a;
}

inline Vec vec_load_bf16(const uint16_t* p) {
  Vec r;
  for (int i = 0; i < 16; ++i) {
    const uint32_t bits = static_cast<uint32_t>(p[i]) << 16;
    __builtin_memcpy(&r.lane[i], &bits, sizeof(bits));
  }
  return r;
}

inline void vec_store_bf16(uint16_t* p, Vec a) {
  for (int i = 0; i < 16; ++i) {
    uint32_t bits = 0;
    __builtin_memcpy(&bits, &a.lane[i], sizeof(bits));
    const bool is_nan = (bits & 0x7fffffffU) > 0x7f800000U;
    const uint32_t rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
    p[i] = static_cast<uint16_t>(is_nan ? (bits >> 16) | 0x40U : rounded);
  }
}

/// E4M3 codes as value / 256: the code's exponent and mantissa, placed in a float32 of exponent
/// bias 127, are 2^-120 times its value; the product with 2^112 is exact, subnormal codes included.
inline Vec vec_load_e4m3(const uint8_t* p) {
  Vec r;
  for (int i = 0; i < 16; ++i) {
    const auto code = static_cast<uint32_t>(p[i]);
    const uint32_t bits = ((code & 0x80U) << 24) | ((code & 0x7fU) << 20);
    __builtin_memcpy(&r.lane[i], &bits, sizeof(bits));
    r.lane[i] *= 0x1p112F;
  }
  return r;
}

/// Two consecutive vectors of codes.
inline void vec_load_e4m3_pair(const uint8_t* p, Vec* a, Vec* b) {
  *a = vec_load_e4m3(p);
  *b = vec_load_e4m3(p + 16);
}
