// SPDX-License-Identifier: MIT
// Macros that popular toolkits leave behind, as their headers define them: names that ours must not use. Left out are
// those that break Eigen, xsimd or the standard library themselves (X11's Success; Windows' min and max, which NOMINMAX
// removes; complex of complex.h; Arduino's abs, min, max, round and B0 to B11111111).
#pragma once

// Qt, qobjectdefs.h and qglobal.h
#define signals public
#define slots
#define emit
#define foreach Q_FOREACH
#define forever for (;;)

// X11, X.h and Xlib.h
#define None 0L
#define Bool int
#define Status int
#define True 1
#define False 0
#define Always 2
#define Above 0
#define Below 1
#define Unsorted 0
#define Convex 2
#define Nonconvex 1
#define Complex 0
#define FocusIn 9
#define FocusOut 10
#define KeyPress 2
#define Expose 12
#define GrayScale 1
#define StaticColor 2
#define ParentRelative 1L
#define CopyFromParent 0L
#define CurrentTime 0L
#define DestroyAll 0
#define NormalState 1
#define ZoomState 2

// Windows, minwindef.h, windef.h, winerror.h, wingdi.h, rpcndr.h
#define near
#define far
#define NEAR
#define FAR
#define IN
#define OUT
#define OPTIONAL
#define CONST const
#define VOID void
#define TRUE 1
#define FALSE 0
#define ERROR 0
#define NO_ERROR 0L
#define DELETE (0x00010000L)
#define IGNORE 0
#define INFINITE 0xFFFFFFFF
#define TRANSPARENT 1
#define OPAQUE 2
#define ABSOLUTE 1
#define RELATIVE 2
#define interface struct
#define small char
#define hyper long long
#define CreateFile CreateFileA
#define GetObject GetObjectA
#define SendMessage SendMessageA

// C's complex.h
#define I _Complex_I

// Arduino, Arduino.h, Print.h, binary.h
#define HIGH 0x1
#define LOW 0x0
#define INPUT 0x0
#define OUTPUT 0x1
#define PI 3.1415926535897932384626433832795
#define HALF_PI 1.5707963267948966192313216916398
#define TWO_PI 6.283185307179586476925286766559
#define EULER 2.718281828459045235360287471352
#define SERIAL 0x0
#define DISPLAY 0x1
#define DEFAULT 1
#define EXTERNAL 0
#define CHANGE 1
#define FALLING 2
#define RISING 3
#define DEC 10
#define HEX 16
#define OCT 8
#define BIN 2
#define radians(deg) ((deg)*DEG_TO_RAD)
#define degrees(rad) ((rad)*RAD_TO_DEG)
#define sq(x) ((x) * (x))
#define constrain(amt, low, high) ((amt) < (low) ? (low) : ((amt) > (high) ? (high) : (amt)))
#define interrupts() sei()
#define lowByte(w) ((uint8_t)((w)&0xff))
#define highByte(w) ((uint8_t)((w) >> 8))
#define bitRead(value, bit) (((value) >> (bit)) & 0x01)
#define bitSet(value, bit) ((value) |= (1UL << (bit)))
#define word(...) makeWord(__VA_ARGS__)
#define bit(b) (1UL << (b))
#define F(string_literal) (reinterpret_cast<const __FlashStringHelper*>(PSTR(string_literal)))
