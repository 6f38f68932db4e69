/* winsock2.h. */
typedef UINT_PTR SOCKET;
typedef int16_t SHORT;
typedef int32_t INT;
struct sockaddr;

typedef struct pollfd {
    SOCKET fd;
    SHORT events;
    SHORT revents;
} WSAPOLLFD;
